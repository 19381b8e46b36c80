# SPDX-License-Identifier: Apache-2.0
"""Taking a window back from the processes that were given its file.

A file of sysfs is no hold on the device: neither an unbind nor an unplug waits for who
has it open or mapped.  But a mapping of it outlives both.  After an unplug it reads
zeros, or whatever is plugged at that address next, which may be another master's
memory: the kernel takes mappings away at an unplug by a list that the mappings of BARs
have not been in since Linux 5.12.

What takes them away is a driver that claims the BAR, if the kernel has
IO_STRICT_DEVMEM, as Debian's have.  vfio-pci does so when the BAR is mapped through it.
A process that touches the window after that gets SIGBUS.
"""

import logging
import mmap
import time
from collections.abc import Callable

from ..errors import Unusable
from ..interfaces import WindowFile
from .position import opened_resource
from .sysfs_device import PciDevice

log = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds in which processes unmap the window; they were told by their connection."""
_PAUSE = 0.02


def take_back(
    pci: PciDevice, file: WindowFile, claim: Callable[[], None] | None
) -> None:
    """See to it that no other process has the window mapped; say so if one has.

    Args:
        pci: the function.
        file: of the window, still open.
        claim: claims BAR 2; None if the binding cannot.
    """
    left: list[str] = []
    try:
        left = _left(pci, file)
    except (Unusable, OSError) as error:
        log.warning(
            "%s: who has its window mapped can't be found out: %s", pci.address, error
        )
    if claim is not None:
        try:
            claim()
        except (Unusable, OSError) as error:
            log.warning("%s: its window can't be claimed: %s", pci.address, error)
    if not left:
        return
    who = ", ".join(left)
    if claim is not None and not _can_be_mapped(file):
        log.warning(
            "%s: %s had not unmapped the window within %g s, so it was taken away: "
            "a process that still touches it ends by SIGBUS",
            *(pci.address, who, GRACE),
        )
        return
    log.warning(
        "%s: %s has not unmapped the window, and it can't be taken away: end that "
        "process before another device is plugged here, whose memory it would see",
        *(pci.address, who),
    )


def left_by_a_killed_agent(pci: PciDevice) -> list[str]:
    """Return which processes have the window of a device mapped that we have not bound.

    An agent that is killed takes nothing back.  Its back-end hears of its end, but one
    that hangs does not, and would go on in rings that are another's by then.
    """
    with opened_resource(pci, 2) as fd:
        return pci.system.mapped_by(fd, None)


def _left(pci: PciDevice, file: WindowFile) -> list[str]:
    """Return who still has the window mapped after the time for it."""
    if not file.holders:
        return []
    end = time.monotonic() + GRACE
    while left := pci.system.mapped_by(file.fd, set(file.holders)):
        if time.monotonic() >= end:
            break
        time.sleep(_PAUSE)
    return left


def _can_be_mapped(file: WindowFile) -> bool:
    """Whether the kernel still lets the window be mapped from its file."""
    # A claim by which mappings are taken away refuses others, too.
    try:
        mmap.mmap(file.fd, mmap.PAGESIZE).close()
    except OSError:
        return False
    return True
