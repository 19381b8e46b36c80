# SPDX-License-Identifier: Apache-2.0
"""The bridge that TAPs join.

It is made if it is not there, and stays when we end: others may have joined it, and
the next agent will.  One that somebody deletes while we run is not made again, since
he meant to; when there is one of its name again, the TAPs join that.
"""

import logging
import socket

from ..errors import Unusable
from .netlink import netlink
from .tap import is_name, stable_mac

log = logging.getLogger(__name__)


def parse_bridge(text: str) -> str:
    """Return a bridge's name.

    Raises:
        ValueError: the kernel would not take it.
    """
    if not is_name(text):
        raise ValueError(f"{text!r} is no name of a bridge, as br0")
    return text


class Bridge:
    """A bridge by its name.

    Args:
        name: its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def index(self) -> int | None:
        """The kernel's number for it; None if it is not there."""
        try:
            return socket.if_nametoindex(self.name)
        except OSError:
            return None

    def make(self) -> None:
        """Make it, if it is not there.

        Without the spanning tree protocol a port forwards as soon as it has joined.
        A MAC of its own does not change with those of its ports, as the kernel's does.

        Raises:
            Unusable: there can be none, or what has its name is no bridge.
        """
        if self.index is None:
            try:
                self._make()
            except Unusable as why:
                if self.index is None:  # else another agent was faster
                    raise Unusable(f"{why}; modprobe bridge, and run as root") from None
        self._check()

    def _make(self) -> None:
        with netlink(f"bridge {self.name}", "to make it") as ip:
            ip.link(
                "add",
                ifname=self.name,
                kind="bridge",
                br_stp_state=0,
                br_forward_delay=0,
                address=stable_mac("bridge", self.name),
            )
            ip.link("set", index=socket.if_nametoindex(self.name), state="up")
        log.info("made bridge %s", self.name)

    def _check(self) -> None:
        with netlink(f"bridge {self.name}", "to look at it") as ip:
            info = ip.link("get", ifname=self.name)[0].get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else None
        if kind != "bridge":
            raise Unusable(
                f"{self.name} is no bridge but {kind or 'a card'}: choose another "
                "--bridge"
            )

    def join(self, tap: str) -> int:
        """Make a TAP a port of it; return the bridge's number.

        Raises:
            Unusable: it is not there, or no bridge, or the kernel refuses.
        """
        index = self.index
        if index is None:
            raise Unusable(
                f"bridge {self.name} is gone: make it again (ip link add {self.name} "
                "type bridge), or start the agent anew"
            )
        self._check()
        with netlink(f"TAP {tap}", f"to join bridge {self.name}") as ip:
            ip.link("set", index=socket.if_nametoindex(tap), master=index)
        return index
