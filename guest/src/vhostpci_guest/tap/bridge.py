# SPDX-License-Identifier: Apache-2.0
"""The bridge that TAPs join.

The agent makes the bridge at its start if the bridge does not exist.  The bridge stays
when the agent ends, because other interfaces may have joined it.  If the bridge is
deleted while the agent runs, the agent does not make it again, since that was the
user's decision.  When a bridge of that name appears again, the TAPs join it.
"""

import logging
import socket

from vhostpci_shared.errors import BadValue

from ..errors import Unusable
from . import namespace
from .netlink import netlink
from .settings import is_name, stable_mac
from .tap import Tap

log = logging.getLogger(__name__)


def parse_bridge(text: str) -> str:
    """Return a bridge's name.

    Raises:
        BadValue: the kernel would refuse the name.
    """
    if not is_name(text):
        raise BadValue(
            f"{text!r} is no name of a bridge: write one as br0", code="G117"
        )
    return text


class Bridge:
    """A Linux bridge, known by its name; it need not exist."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def index(self) -> int | None:
        """The interface index of the bridge; None if it does not exist."""
        # Asked each time: a bridge that is deleted and made again has another index.
        try:
            return socket.if_nametoindex(self.name)
        except OSError:
            return None

    def make(self) -> None:
        """Make the bridge, unless it exists.

        Raises:
            Unusable: the kernel refuses, or an interface of that name is no bridge.
        """
        if self.index is None:
            try:
                self._make()
            except Unusable as why:
                # Another agent, started at the same time, may have made the bridge
                # after our look: then there is one, and nothing is wrong.
                if self.index is None:
                    raise Unusable(
                        f"{why}; modprobe bridge, and run as root", code=why.code
                    ) from None
        self._check()

    def _make(self) -> None:
        with netlink(f"bridge {self.name}", "to make it") as ip:
            ip.link(
                "add",
                ifname=self.name,
                kind="bridge",
                # A TAP forwards as soon as it has its carrier.  With the spanning tree
                # protocol it would listen and learn for two delays of 15 s before.
                br_stp_state=0,
                br_forward_delay=0,
                # Without an address that is set, the kernel gives the bridge the
                # lowest MAC of its members, which changes as TAPs come and go.
                address=stable_mac("bridge", self.name, namespace.label()),
            )
            # By its name, in one request: another program may have deleted it just now,
            # which the kernel then says.
            ip.link("set", ifname=self.name, state="up")
        log.info("made bridge %s", self.name)

    def _check(self) -> None:
        # The kernel alone would not refuse all of them: a bond or a VRF takes members
        # by the same request as a bridge.
        with netlink(f"bridge {self.name}", "to look at it") as ip:
            info = ip.link("get", ifname=self.name)[0].get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info else None
        if kind != "bridge":
            raise Unusable(
                f"{self.name} is no bridge but {kind or 'a card'}: choose another "
                "--bridge",
                code="G118",
            )

    def join(self, tap: Tap) -> int:
        """Add a TAP to the bridge; return the bridge's interface index.

        Raises:
            Unusable: the bridge does not exist or is no bridge, the TAP was deleted or
                is in another network namespace, or the kernel refuses.
        """
        index = self.index
        if index is None:
            raise Unusable(
                f"bridge {self.name} is gone: make it again (ip link add {self.name} "
                "type bridge), or restart the agent",
                code="G119",
            )
        # Again: since `make`, another interface may have taken the name.
        self._check()
        # Its index there may be that of another interface here.
        if tap.moved:
            raise Unusable(
                f"TAP {tap.name} was moved to another network namespace than bridge "
                f"{self.name}: move it back (ip link set {tap.name} netns ...), or "
                "leave it out of the bridge",
                code="G120",
            )
        tap.join(self.name, index)
        return index
