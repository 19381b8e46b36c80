# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel to set up interfaces, by way of pyroute2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import Unusable


def preload() -> None:
    """Import what it needs, before anybody waits for us.

    It takes longer than all the rest together: a second or two in an emulated VM.
    """
    import pyroute2  # noqa: F401


@contextmanager
def netlink(who: str, what: str) -> Iterator[Any]:
    """Give pyroute2's IPRoute; what the kernel refuses becomes Unusable.

    Args:
        who: as "TAP vp0".
        what: that is asked for it.
    """
    # Imported here, so that only those pay who need it: see `preload`.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            raise Unusable(
                f"{who}: the kernel refuses {what}: {error.args[-1]}"
            ) from error
