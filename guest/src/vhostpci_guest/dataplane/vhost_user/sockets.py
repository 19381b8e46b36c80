# SPDX-License-Identifier: Apache-2.0
"""Makes the sockets where back-ends come, and connects to those of back-ends.

In most directories only root may do that, and a back-end runs as root in most cases.
So an agent without rights has it done by its helper, which knows the user's rule: of
the agent it takes a device's name, and no path.
"""

import errno
import logging
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from vhostpci_shared import listening_socket
from vhostpci_shared.limits import exhausted

from ...errors import Unusable
from ...privileges.channel import Answer, Channel, Handler, Order

log = logging.getLogger(__name__)

MODE = 0o660
"""Who may connect gets the master's memory: the socket's owner, its group, and root."""
LISTEN, CONNECT, REMOVE = (
    "listen for back-ends",
    "connect to a back-end",
    "remove the socket",
)
_BACKLOG = 16
_PATH_MAX = 107
"""Bytes in the path of a Unix socket (sun_path, without its last zero)."""


class Sockets(Protocol):
    """The sockets of the devices, by their names."""

    def listen(self, name: str) -> socket.socket:
        """Return a socket that back-ends connect to, and that never blocks.

        Raises:
            Unusable: another process listens there, or it cannot be made.
        """

    def connect(self, name: str) -> socket.socket:
        """Return a connection to a back-end, which never blocks.

        Raises:
            OSError: no process listens there.
        """

    def remove(self, name: str) -> None:
        """Remove a socket where no process listens any more, if it is there."""


class Paths(Protocol):
    """The user's rule for the sockets."""

    def path(self, name: str) -> Path:
        """Return the path for the device of that name.

        Raises:
            Unusable: it has none.
        """
        ...


class LocalSockets:
    """`Sockets` of this process.

    Args:
        paths: the user's rule.
        owner: user and group who get the sockets; None: who we are.
    """

    def __init__(self, paths: Paths, owner: tuple[int, int] | None = None) -> None:
        self._place = paths
        self._owner = owner

    def listen(self, name: str) -> socket.socket:
        """Return a new socket, in place of one where no process listens."""
        path = self._place.path(name)
        server = _listen(path)
        if self._owner is not None:
            try:
                os.chown(path, *self._owner)
            except PermissionError:
                log.info("%s stays %d's: it cannot be given away", path, os.geteuid())
        return server

    def connect(self, name: str) -> socket.socket:
        """Return a new connection."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(os.fspath(self._place.path(name)))
        except OSError:
            connection.close()
            raise
        return connection

    def remove(self, name: str) -> None:
        """Remove it; what is not ours stays."""
        with suppress(Unusable):
            _clear(self._place.path(name))


def orders(sockets: LocalSockets) -> Mapping[str, Handler]:
    """Return what a helper does of `Sockets`, by the names of the orders."""

    def listen(order: Order) -> Answer:
        return Answer(fd=sockets.listen(order.text(0)).detach())

    def connect(order: Order) -> Answer:
        return Answer(fd=sockets.connect(order.text(0)).detach())

    def remove(order: Order) -> Answer:
        sockets.remove(order.text(0))
        return Answer()

    return {LISTEN: listen, CONNECT: connect, REMOVE: remove}


class RemoteSockets:
    """`Sockets` of a helper's."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def listen(self, name: str) -> socket.socket:
        """Get a new socket."""
        return _given(self._channel.ask(LISTEN, name))

    def connect(self, name: str) -> socket.socket:
        """Get a new connection."""
        return _given(self._channel.ask(CONNECT, name))

    def remove(self, name: str) -> None:
        """Have a socket removed."""
        # The next agent removes it; what else is to be closed is closed all the same.
        try:
            self._channel.ask(REMOVE, name)
        except (Unusable, OSError) as why:
            log.warning("the socket of %s is not removed: %s", name, why)


def _given(answer: Answer) -> socket.socket:
    if answer.fd is None:
        raise OSError(errno.EPROTO, "the helper sent no socket")
    given = socket.socket(fileno=answer.fd)
    given.setblocking(False)
    return given


def _clear(path: Path) -> None:
    """Remove a socket that no process listens on.

    Raises:
        Unusable: a process listens on it, or something else is there.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Unusable(
                f"{path} is there and is no socket: move it away", code="G062"
            )
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unusable(
            f"cannot look at {path}: {error.strerror}", code="G063"
        ) from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            # What cannot be removed is reported by rename() or bind().
            with suppress(OSError):
                path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full, so a process listens
        except OSError as error:
            raise Unusable(
                f"cannot look at {path}: {error.strerror}", code="G064"
            ) from error
    raise Unusable(
        f"another process listens on {path}: end it, give each device its own socket "
        "by {name} in the path, or write server=off to connect to that process",
        code="G065",
    )


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_MAX:
        raise Unusable(
            f"{path}: the path of a socket has at most {_PATH_MAX} bytes", code="G066"
        )
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o755)
        return listening_socket.listen(
            path, lambda: _clear(path), mode=MODE, backlog=_BACKLOG
        )
    except OSError as error:
        if exhausted(error):
            raise
        raise Unusable(
            f"cannot make the socket {path}: {error.strerror}; user {os.geteuid()} "
            "must be allowed to write into its directory",
            code="G067",
        ) from error
