# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the hypervisor's people of itself, in the metadata."""

from collections.abc import Iterable, Mapping
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.about import About, AboutFlag, Uncounted

from .. import __version__
from ..interfaces import Device

_COUNTS = {
    "packets": Uncounted.PACKETS,
    "octets": Uncounted.OCTETS,
    "drops": Uncounted.DROPS,
    "kicks": Uncounted.KICKS,
    "calls": Uncounted.CALLS,
}
"""The counts of a ring, as `not_counted` of the status names them."""


def about(
    instance: int,
    device: Device,
    port: Mapping[str, Any],
    not_counted: Iterable[str],
    *,
    slow: bool,
) -> About:
    """Return the entry.

    Args:
        instance: the agent's, as in its entry `Agent`.
        device: what it serves.
        port: the port's status.
        not_counted: names of counts.
        slow: whether window 0 reads as slowly as uncached memory.
    """
    uncounted = Uncounted(0)
    for name in not_counted:
        uncounted |= _COUNTS[name]
    flags = AboutFlag.SLOW if slow else AboutFlag(0)
    if device.vector(md.METADATA_VECTOR) is not None:
        flags |= AboutFlag.INTERRUPTS
    return About(
        instance=instance,
        uncounted=uncounted,
        flags=flags,
        version=__version__,
        port=str(port.get("tap") or port.get("socket") or ""),
    )
