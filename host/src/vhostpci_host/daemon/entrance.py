# SPDX-License-Identifier: Apache-2.0
"""How front-ends come to a device: to its socket, to one we were given, or we to them.

A connection that waits in the queue of a listening socket freezes a whole master: its
QEMU waits for an answer with its big lock held.  And one that is accepted only to be
closed fills the log of a QEMU, each second.  So an entrance that is shut has no socket.
"""

import socket
from collections.abc import Callable
from typing import Protocol

from ..config.device import DeviceConfig
from ..interfaces import Loop
from ..memory.directory import check_directory
from .connector import Connector
from .listeners import PathListener


class Entrance(Protocol):
    """How front-ends come to a device."""

    can_shut: bool
    """Whether no front-end need come in that we do not want."""
    fetches: bool
    """Whether we connect to a front-end, so that each one comes back."""

    @property
    def problem(self) -> str:
        """Why no front-end can come; empty if one may."""
        ...

    def open(self) -> None:
        """Let front-ends come.

        Raises:
            HostError: there cannot be a socket.
        """

    def shut(self) -> None:
        """Let none come, without one that waits."""

    def check(self) -> None:
        """Do what is due once a second without a front-end."""


class SocketEntrance:
    """Our socket, which is not there while the entrance is shut.

    Args:
        listen: makes it.
    """

    can_shut, fetches, problem = True, False, ""

    def __init__(self, listen: Callable[[], PathListener]) -> None:
        self._listen = listen
        self._listener: PathListener | None = None

    def open(self) -> None:
        """Listen.

        Raises:
            HostError: there cannot be a socket.
        """
        if self._listener is None:
            self._listener = self._listen()

    def shut(self) -> None:
        """Remove the socket."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def check(self) -> None:
        """Do nothing: the server looks at all its listeners."""


class ConnectingEntrance:
    """A front-end's own socket, to which we connect.

    Args:
        connector: connects.
    """

    can_shut = fetches = True

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._open = False

    @property
    def problem(self) -> str:
        """Why there is no connection; empty while none is wanted."""
        return self._connector.problem if self._open else ""

    def open(self) -> None:
        """Connect when `check` is called."""
        self._open = True

    def shut(self) -> None:
        """Connect no more, and give up a place in the front-end's queue."""
        self._open = False
        self._connector.close()

    def check(self) -> None:
        """Connect, unless a connection waits for the front-end's first word."""
        if self._open:
            self._connector.check()


class GivenEntrance:
    """A socket that we were given: it is not ours to remove."""

    can_shut, fetches, problem = False, False, ""

    def open(self) -> None:
        """Do nothing: it is open."""

    def shut(self) -> None:
        """Do nothing: it cannot be shut."""

    def check(self) -> None:
        """Do nothing."""


def entrance_of(
    config: DeviceConfig,
    inherited: socket.socket | None,
    loop: Loop,
    complain: Callable[[str], None],
    *,
    listen: Callable[[], PathListener],
    take: Callable[[socket.socket, int], None],
) -> Entrance:
    """Return the entrance of a device; it is shut, unless we were given its socket.

    Args:
        config: the device's.
        inherited: a socket that we were given.
        loop: tells of connections that we make.
        complain: is called with why there can be none.
        listen: makes the device's socket.
        take: is called with each connection that we make, and its process.

    Raises:
        HostError: the socket's directory cannot be used.
    """
    if config.connect is not None:
        return ConnectingEntrance(Connector(config.connect, loop, take, complain))
    if inherited is not None:
        return GivenEntrance()
    # With --socket-path it may be in another directory.
    check_directory(config.vhost_user.parent)
    return SocketEntrance(listen)
