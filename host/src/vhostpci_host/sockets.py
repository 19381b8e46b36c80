# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: the only file that touches one.

Everything is non-blocking but `ask`, the command line's side of the control socket.
What a peer does wrong is a ProtocolError, its going away an EOFError.
"""

import array
import contextlib
import errno
import fcntl
import json
import logging
import os
import select
import socket
import stat
import struct
import termios
from pathlib import Path
from typing import Any

from vhostpci_shared import ivshmem
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.wire import ProtocolError

from .errors import HostError, InUse, NoDaemon, explain
from .fds import Fd
from .ivshmem.peers import Outgoing
from .vhost_user.message import Message

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
ASK_TIMEOUT = 5.0
_BACKLOG = 16


def listen(path: Path, mode: int, group: int | None) -> socket.socket:
    """Listen on `path`, in the place of a socket that a dead daemon left there.

    Raises:
        HostError: it is in use, or cannot be made.
    """
    _clear(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(server.fileno(), mode)  # bind() makes the file with this mode
        server.bind(os.fspath(path))
        os.chmod(path, mode)
        if group is not None:
            os.chown(path, -1, group)
        server.listen(_BACKLOG)
    except OSError as error:
        server.close()
        raise explain("make socket", path, error) from error
    server.setblocking(False)
    return server


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise HostError(f"{path} is there and is no socket: move it away")
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
            pass  # its queue is full: somebody listens
        except OSError as error:
            raise explain("look at socket", path, error) from error
    raise InUse(f"{path} is in use by another program: stop it, or choose another name")


def inherited(number: int) -> socket.socket:
    """Take over the socket that our parent gave us.

    Raises:
        HostError: descriptor `number` is no Unix stream socket.
    """
    try:
        ours = socket.socket(fileno=number)
    except OSError as error:
        raise HostError(f"--fd {number}: {error.strerror}") from error
    if ours.family != socket.AF_UNIX or ours.type != socket.SOCK_STREAM:
        ours.detach()
        raise HostError(f"--fd {number} is no Unix stream socket")
    ours.setblocking(False)
    return ours


def is_listening(sock: socket.socket) -> bool:
    """Whether connections are to be accepted from it, or it is one itself."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def accept(server: socket.socket) -> socket.socket | None:
    """Accept a connection; None if it went away before we came."""
    try:
        connection, _ = server.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    connection.setblocking(False)
    return connection


def peer_pid(connection: socket.socket) -> int:
    """Return the process that connected, 0 if it is of another PID namespace."""
    data = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid


def is_process(connection: socket.socket) -> bool:
    """Whether an ivshmem client is an agent itself, and no QEMU.

    An agent gives its socket a name before it connects; QEMU never does.
    """
    return bool(connection.getpeername())


def hung_up(connection: socket.socket) -> bool:
    """Whether the other side is gone, whatever it left to read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def at_end(connection: socket.socket) -> bool:
    """Throw away what a peer sent that has nothing to say; whether it has ended."""
    try:
        return not connection.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        log.debug("connection broke", exc_info=True)
        return True


class MessageReader:
    """Puts vhost-user messages together from what a connection has to read.

    A message is read in its own pieces and never beyond its end: so descriptors that
    come with a piece are the message's.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._header: vu.Header | None = None
        self._fds: list[Fd] = []

    def read(self) -> Message | None:
        """Return the next message; None if it is not all there yet.

        Raises:
            EOFError: the front-end is gone.
            ProtocolError: this is no vhost-user message.
        """
        while (missing := self._missing()) > 0:
            try:
                self._receive(missing)
            except BlockingIOError:
                return None
        header, payload, fds = self._header, self._data, self._fds
        assert header is not None, "a message without a header"
        self._header, self._data, self._fds = None, b"", []
        return Message(header, payload, fds)

    def close(self) -> None:
        """Close the descriptors of a message that will never be whole."""
        while self._fds:
            self._fds.pop().close()

    def _missing(self) -> int:
        """Return how many bytes are missing, of the header and then the payload."""
        size = vu.Header.layout.size
        if self._header is None and len(self._data) == size:
            self._header, self._data = vu.Header.parse(self._data), b""
        wanted = size if self._header is None else self._header.size
        # A header has to be looked at even if it is the whole message.
        return wanted - len(self._data)

    def _receive(self, size: int) -> None:
        data, fds = receive(self._connection, size)
        self._fds += fds
        if not data:
            raise EOFError("the front-end is gone")
        self._data += data
        if len(self._fds) > vu.MAX_FDS:
            raise ProtocolError(f"more than {vu.MAX_FDS} descriptors in one message")


def receive(connection: socket.socket, size: int) -> tuple[bytes, list[Fd]]:
    """Read up to `size` bytes, and the descriptors beside them, which are ours.

    Raises:
        BlockingIOError: there is nothing yet.
        EOFError: the other side is gone.
        ProtocolError: there were more descriptors than any message has.
        OSError: EMFILE, if we can have no more of them.
    """
    # Not socket.recv_fds(): Python 3.11's drops its flags.
    room = socket.CMSG_LEN(vu.MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = connection.recvmsg(
            size, room, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    fds = [Fd(number) for _, _, rights in ancillary for number in _ints(rights)]
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            fd.close()
        if len(fds) < vu.MAX_FDS:  # there was room: Linux had no number to give
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise ProtocolError(f"more than {vu.MAX_FDS} descriptors in one message")
    return data, fds


def _ints(rights: bytes) -> list[int]:
    """Return the numbers in an SCM_RIGHTS, the only kind that we are sent."""
    return array.array("i", rights).tolist()


def send(connection: socket.socket, data: bytes) -> None:
    """Send a reply, which is small enough for any socket buffer.

    Raises:
        EOFError: the other side is gone.
        ProtocolError: it does not read what we send.
    """
    try:
        sent = connection.send(data, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        sent = 0
    except ConnectionError as error:
        raise EOFError(str(error)) from error
    if sent < len(data):
        raise ProtocolError("it does not read our replies")


def send_outgoing(connection: socket.socket, outgoing: Outgoing) -> None:
    """Send one ivshmem message in a sendmsg() of its own, as QEMU needs it.

    Raises:
        BlockingIOError: the buffer is full; it has not been sent.
        EOFError: the other side is gone.
        OSError: ETOOMANYREFS, if too many descriptors are under way.
    """
    ancillary = []
    if outgoing.fd is not None:
        fds = array.array("i", [outgoing.fd.fileno()])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    data = ivshmem.encode(outgoing.message)
    try:
        connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except ConnectionError as error:
        raise EOFError(str(error)) from error


def send_last(connection: socket.socket, messages: list[Outgoing]) -> None:
    """Send the last messages that this peer gets, if it takes them."""
    with contextlib.suppress(EOFError, BlockingIOError):
        for outgoing in messages:
            send_outgoing(connection, outgoing)


def has_unread(connection: socket.socket) -> bool:
    """Whether the other side has not read all that we sent."""
    queued = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, queued)  # SIOCOUTQ
    return queued[0] > 0


def ask(path: Path, request: dict[str, Any], timeout: float = ASK_TIMEOUT) -> Any:
    """Send a request to the daemon behind control socket `path`; return its answer.

    Raises:
        HostError: there is no daemon, or it cannot do what was asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoDaemon(
                f"no daemon at {path}: start it, or see --run-dir"
            ) from error
        except OSError as error:
            raise explain("ask the daemon at", path, error) from error
        except ValueError as error:
            raise HostError(f"the daemon at {path} gave no answer: {error}") from error
    if not answer.get("ok"):
        raise HostError(str(answer.get("error")))
    return answer["result"]
