# SPDX-License-Identifier: Apache-2.0
"""Requests to the kernel about network interfaces, made with pyroute2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import Unusable


def preload() -> None:
    """Import pyroute2 before the agent takes a device."""
    # The import takes a second or two in an emulated VM.  Later, inside the event loop,
    # all devices would wait for it, and the daemon for the agent's answer.
    import pyroute2  # noqa: F401


@contextmanager
def netlink(who: str, what: str) -> Iterator[Any]:
    """Give a pyroute2.IPRoute, and turn a refusal of the kernel into Unusable.

    Args:
        who: the interface that the request is about, as "TAP vp0".
        what: what is requested, as "MTU 9000".

    Raises:
        Unusable: the kernel refuses the request.
    """
    # Imported here and in `preload` only: commands as `status` start without pyroute2.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            # `args` has the errno and then the text.
            raise Unusable(
                f"{who}: the kernel refuses {what}: {error.args[-1]}", code="G129"
            ) from error
