# SPDX-License-Identifier: Apache-2.0
"""The data plane that the user wants: what it needs, and the ports that make it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..dataplane.call_thread import CallThread
from ..dataplane.interface import Port
from ..dataplane.kinds import AUTO, RING, VHOST_NET, VHOST_USER, WHY_RING
from ..dataplane.vhost_user.place import Place, parse_place
from ..dataplane.vhost_user.port import SocketPorts
from ..dataplane.vhost_user.sockets import LocalSockets, Sockets
from ..privileges.user import NOBODY, User
from .errors import UsageError

OF_A_TAP = ("tap", "bridge", "keep_tap", "mtu", "address", "mac", "cpus", "poll_us")
"""Options of `run` that mean nothing where the packets go to another process."""


OF_THREADS = ("cpus", "poll_us")
"""Options of `run` that mean nothing where the kernel moves the packets."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A data plane, as the option --data-plane names it."""

    kind: str = RING
    place: Place | None = None
    """Where the back-ends' sockets are."""
    reason: str = ""
    """Why it is this one, if that was not the user's choice."""

    @property
    def has_tap(self) -> bool:
        """Whether packets go to a TAP."""
        return self.place is None

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel's vhost-net moves the packets."""
        return self.kind == VHOST_NET

    def check(self, arguments: argparse.Namespace) -> None:
        """Check that the other options fit.

        Raises:
            UsageError: one is for a TAP, or for our threads, and there is none.
        """
        for name in OF_THREADS if self.in_kernel else ():
            if getattr(arguments, name):
                raise UsageError(
                    f"--{name.replace('_', '-')}: the data plane {self.kind} has no "
                    "threads of ours; leave this option out"
                )
        for name in () if self.has_tap else OF_A_TAP:
            if getattr(arguments, name):
                raise UsageError(
                    f"--{name.replace('_', '-')}: the data plane {self.kind} has no "
                    "TAP; leave this option out"
                )

    def local_sockets(self, user: User | None) -> LocalSockets | None:
        """Return what makes the sockets in a process that may; None for a TAP.

        Args:
            user: who we become.
        """
        if self.place is None:
            return None
        # Not nobody's: other programs are nobody, too, and who may connect gets the
        # master's memory.
        own = user is not None and user.uid != NOBODY
        return LocalSockets(self.place, (user.uid, user.gid) if user and own else None)

    def socket_ports(
        self, sockets: Sockets | None, *, confine: bool
    ) -> Callable[[str], Port] | None:
        """Return what makes a device's port, if it is a socket."""
        if self.place is None or sockets is None:
            return None
        make_calls = partial(CallThread, confine=confine)
        return SocketPorts(self.place, sockets, make_calls).make


AUTOMATIC = Choice(RING, reason=WHY_RING)


def parse_data_plane(text: str) -> Choice:
    """Read the value of --data-plane.

    Raises:
        ValueError: there is no such data plane.
    """
    kind, colon, rest = text.partition(":")
    if kind == VHOST_USER and colon:
        return Choice(kind, parse_place(rest))
    if text == AUTO:
        return AUTOMATIC
    if text in (RING, VHOST_NET):
        return Choice(kind)
    raise ValueError(
        f"{text!r}: write {AUTO}, {RING}, {VHOST_NET} or {VHOST_USER}:PATH"
    )
