# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: listen, accept, and find out who is at the other end.

No socket here ever blocks.  What is said over a connection is in vhost_user/wire.py
and ivshmem/wire.py.
"""

import array
import fcntl
import logging
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vhostpci_shared import listening_socket
from vhostpci_shared.limits import exhausted

from .errors import HostError, InUse, explain

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_BACKLOG = 100


def listen(path: Path, mode: int, group: int | None) -> socket.socket:
    """Listen on `path`; replace a socket there that no process listens on.

    Raises:
        HostError: it is in use, or cannot be made.
    """
    return _listen(path, lambda: _clear(path), mode, group)


def listen_again(path: Path, mode: int, group: int | None) -> socket.socket:
    """Listen on `path` where our socket was; replace one that another process made.

    Raises:
        HostError: something else is there, or a socket cannot be made.
    """
    return _listen(path, lambda: _remove_socket(path), mode, group)


def _listen(
    path: Path, clear: Callable[[], None], mode: int, group: int | None
) -> socket.socket:
    try:
        return listening_socket.listen(
            path, clear, mode=mode, group=group, backlog=_BACKLOG
        )
    except OSError as error:
        if exhausted(error):
            raise  # the caller says that there are no descriptors left
        raise explain("make socket", path, error) from error


def _remove_socket(path: Path) -> None:
    """Remove a socket, whichever process listens on it.

    Raises:
        HostError: something else is there, or it cannot be removed.
    """
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain("replace", path, error) from error
    raise _no_socket(path)


# System calls: lstat, unlink.
def _clear(path: Path) -> None:
    """Remove a socket that no process listens on.

    Raises:
        InUse: a process listens on it.
        HostError: the path is no socket, or cannot be looked at.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _no_socket(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain("look at", path, error) from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # EAGAIN: its queue is full, so a process listens
        except OSError as error:
            raise explain("look at socket", path, error) from error
    raise InUse(
        f"{path} is in use by another program: stop it, or choose another name",
        code="H137",
    )


def _no_socket(path: Path) -> HostError:
    return HostError(f"{path} is there and is no socket: move it away", code="H136")


def remove_unused(path: Path) -> None:
    """Remove a socket that no process listens on; leave everything else alone."""
    with suppress(HostError):
        _clear(path)


def inode(path: Path) -> tuple[int, int] | None:
    """Return which file is at `path`; None if there is none that we can see."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def leads_to(path: Path, server: socket.socket) -> bool:
    """Whether who connects to `path` comes to the listening socket `server`."""
    if _readable(server):
        return True  # a process has come that way
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full, and would be readable were it another's
        except OSError:
            return False
        if not _readable(server):
            return False
        # Our probe; or a process that came this very moment, and comes again.
        connection = accept(server)
    if connection is not None:
        connection.close()
    return True


def _readable(server: socket.socket) -> bool:
    poll = select.poll()
    poll.register(server, select.POLLIN)
    return bool(poll.poll(0))


def who_listens(path: Path) -> str:
    """Return which process listens on the socket at `path`, for the log."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
            return process_text(peer_pid(probe))
    except OSError:
        return "another process"


def process_text(pid: int) -> str:
    """Return `pid N (NAME)` for the log, or what is known of it."""
    if pid == 0:
        return "a process of another PID namespace"
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return f"pid {pid}"  # it has ended, or /proc hides it
    return f"pid {pid} ({name})"


def inherited(number: int) -> socket.socket:
    """Take over the socket that our parent gave us.

    Raises:
        HostError: descriptor `number` is no Unix stream socket.
    """
    try:
        ours = socket.socket(fileno=number)
    except OSError as error:
        raise HostError(f"--fd {number}: {error.strerror}", code="H138") from error
    if ours.family != socket.AF_UNIX or ours.type != socket.SOCK_STREAM:
        ours.detach()
        raise HostError(
            f"--fd {number} is no Unix stream socket: give the number of one that the "
            "program which starts this one has made and passes on",
            code="H139",
        )
    ours.setblocking(False)
    return ours


# System calls: connect, setsockopt, socket(AF_UNIX).
def connect(path: Path) -> socket.socket:
    """Connect to the socket at `path`, whose other side may be busy for a while.

    The connection tells who sends (`sender_pid`).

    Raises:
        OSError: no process listens there, or too many wait for it already (EAGAIN).
    """
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.connect(os.fspath(path))
    except OSError:
        ours.close()
        raise
    return ours


def sender_pid(connection: socket.socket) -> int:
    """Return which process has sent what is to be read next from `connect`'s result.

    `peer_pid` would be the process that made the listening socket: libvirt makes it,
    and gives it to QEMU.  From here on `connection` tells it no more.

    Raises:
        EOFError: the other side has closed the connection.
    """
    # With room for the credentials alone, Linux hands over no descriptor here.
    room = socket.CMSG_SPACE(_CREDENTIALS.size)
    try:
        data, ancillary, *_ = connection.recvmsg(1, room, socket.MSG_PEEK)
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    if not data:
        raise EOFError("the connection was closed")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    found = (one for _, kind, one in ancillary if kind == socket.SCM_CREDENTIALS)
    pid: int = _CREDENTIALS.unpack(next(found))[0]
    return pid


def is_listening(sock: socket.socket) -> bool:
    """Whether the socket listens; otherwise it is a connection."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


# System calls: accept4.
def accept(server: socket.socket) -> socket.socket | None:
    """Accept a connection; None if it went away before we came."""
    try:
        connection, _ = server.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    connection.setblocking(False)
    return connection


def turn_away(server: socket.socket) -> None:
    """Hang up on all that wait at a listening socket."""
    try:
        while (connection := accept(server)) is not None:
            connection.close()
    except OSError as error:
        log.warning("connections may wait without end: %s", error.strerror)


def peer_pid(connection: socket.socket) -> int:
    """Return the process that connected, 0 if it is of another PID namespace."""
    data = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid


def hung_up(connection: socket.socket) -> bool:
    """Whether the other side is gone, whatever it left to read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def discard(connection: socket.socket) -> int | None:
    """Discard what a peer sent; return how many bytes: 0 at the connection's end.

    For peers that have nothing to say: an ivshmem client only reads.  None if nothing
    has arrived.
    """
    try:
        return len(connection.recv(4096))
    except BlockingIOError:
        return None
    except OSError:
        log.debug("connection broke", exc_info=True)
        return 0


def has_sent(connection: socket.socket) -> bool:
    """Whether the other side has sent something that is not read yet."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def has_unread(connection: socket.socket) -> bool:
    """Whether the other side has not yet read everything that we sent."""
    # For a Unix socket, SIOCOUTQ counts what the other end has not read, although it
    # lies in the other end's queue already.  Python names it only as TIOCOUTQ, which is
    # the same number.
    queued = array.array("i", [0])
    # System calls: ioctl(TIOCOUTQ).
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, queued)
    return queued[0] > 0
