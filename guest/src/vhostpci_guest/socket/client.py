# SPDX-License-Identifier: Apache-2.0
"""An ivshmem client: the device of a slave that is a process or a container.

The daemon's socket sends us what it sends QEMU: the memory, an eventfd for each of our
vectors, and one for each doorbell of our peers, which connect and disconnect.
"""

import errno
import os
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from vhostpci_shared import ivshmem
from vhostpci_shared.errors import Coded
from vhostpci_shared.eventfd_signal import signal_eventfd
from vhostpci_shared.wire import ProtocolError

from ..dataplane.mapping import Mapping
from ..interfaces import Call, Eventfd, Window, WindowFile

NAME = "socket"
RETRY = 1.0
"""Seconds between two attempts to reach a daemon that is not there."""
HANDSHAKE = 5.0
"""Seconds in which the handshake must be complete; it takes milliseconds."""
MAX_DOORBELLS = 1024
"""Descriptors that we keep of all peers and vectors together."""
_ONE = (1).to_bytes(8, "little")
"""What is written into a socket for one signal."""
_SETTLE = 1.0
"""Seconds after the memory in which further vectors may arrive.  The protocol does not
say how many there are; the daemon sends them all at once."""


class ServerGone(Coded):
    """The server has closed the connection."""


class Client:
    """One connection to an ivshmem server, and the device that it shows.

    `receive` until `connected`; from then on it is a `Device`.

    Args:
        path: the server's socket.

    Raises:
        OSError: no server listens on the socket.
    """

    binding = NAME

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._protocol = ivshmem.Client()
        self._partial = b""
        self._fds: list[int] = []  # that came with the message at hand
        self._vectors: list[int] = []
        self._peers: dict[int, list[int]] = defaultdict(list)
        self._owed: set[tuple[int, int]] = set()
        self._mapping: Mapping | None = None
        self._window: Window | None = None
        self._connected_at = 0.0
        self._undo = ExitStack()
        self._undo.callback(self._close_fds)
        with ExitStack() as undo:
            self._socket = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            )
            # QEMU's socket has no name, so the daemon knows that we take memory of any
            # size, and by the start of the name that we take kicks from a peer
            # (docs/metadata.md, "Sockets").  The rest must be no other process's.
            name = ivshmem.TAKES_KICKS + os.urandom(8).hex().encode()
            self._socket.bind(name)
            self._socket.connect(self.name)
            self._undo.push(undo.pop_all())

    def fileno(self) -> int:
        """Return the socket, at which messages arrive."""
        return self._socket.fileno()

    @property
    def connected(self) -> bool:
        """Whether ID and memory are known, so that it is a device."""
        return self._window is not None

    def receive(self) -> None:
        """Read all messages that have arrived.

        Raises:
            ServerGone: the server has closed the connection, or truncated the memory.
            ProtocolError: it broke the protocol, or refuses the client.
            OSError: the connection failed.
        """
        while self._receive_some():
            pass
        if self.lost:
            raise ServerGone(
                f"{self.name}: the memory that it shows was cut off", code="G107"
            )

    def _receive_some(self) -> bool:
        """Read bytes of one message at most; return whether there were any."""
        # A descriptor arrives with the bytes that it was sent with, so bytes of two
        # messages must not be read together.
        room = ivshmem.SIZE - len(self._partial)
        try:
            data, fds, flags, _address = socket.recv_fds(self._socket, room, 4)
        except BlockingIOError:
            return False
        for fd in fds:  # Python 3.11's recv_fds() drops MSG_CMSG_CLOEXEC
            os.set_inheritable(fd, False)
        self._fds += fds
        if flags & socket.MSG_CTRUNC and len(fds) < 4:
            # Linux had no number left for the next one, and dropped it.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if not data:
            raise ServerGone(
                f"{self.name}: the server has closed the connection", code="G108"
            )
        self._partial += data
        if len(self._partial) == ivshmem.SIZE:
            message, self._partial = ivshmem.decode(self._partial), b""
            self._message(message)
        return True

    def _message(self, message: int) -> None:
        fd = self._fds.pop(0) if self._fds else None
        while self._fds:  # QEMU's server sends one descriptor a message at most
            os.close(self._fds.pop())
        with ExitStack() as undo:
            if fd is not None:
                undo.callback(os.close, fd)
            event = self._protocol.feed(message, fd is not None)
            if isinstance(event, ivshmem.SharedMemory) and fd is not None:
                self._map(fd)
                self._undo.push(undo.pop_all())
            elif isinstance(event, ivshmem.OwnVector) and fd is not None:
                self._keep(fd, self._vectors)
                undo.pop_all()
            elif isinstance(event, ivshmem.PeerVector) and fd is not None:
                self._keep(fd, self._peers[event.peer])
                undo.pop_all()
                self._pay(event.peer, event.vector)
            elif isinstance(event, ivshmem.PeerGone):
                self._forget(event.peer)

    def _keep(self, fd: int, fds: list[int]) -> None:
        kept = len(self._vectors) + sum(map(len, self._peers.values()))
        if kept >= MAX_DOORBELLS:
            raise ProtocolError(
                f"ivshmem server sends over {MAX_DOORBELLS} vectors", code="P072"
            )
        os.set_blocking(fd, False)
        fds.append(fd)

    def _map(self, fd: int) -> None:
        """Map the memory; the descriptor is the window's file from then on."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise ProtocolError(
                "the ivshmem server's shared memory is no memory file", code="P073"
            )
        try:
            mapping = Mapping(fd, status.st_size)
        except (OSError, ValueError) as error:
            raise ProtocolError(
                f"its shared memory can't be mapped: {error}", code="P074"
            ) from None
        self._undo.callback(mapping.close)
        self._mapping = mapping
        own_id = self._protocol.own_id
        assert own_id is not None  # it came before the memory
        # What we have mapped, another process can map as well: it is a file of memory,
        # and open for writing.
        self._window = Window(
            own_id, mapping.address, mapping.view, self.name, WindowFile(fd)
        )
        self._connected_at = time.monotonic()

    def _pay(self, peer: int, vector: int) -> None:
        """Ring a doorbell that was rung before its peer had connected."""
        if (peer, vector) in self._owed:
            self._owed.discard((peer, vector))
            self.ring(peer, vector)

    def _forget(self, peer: int) -> None:
        for fd in self._peers.pop(peer, ()):
            os.close(fd)

    def _close_fds(self) -> None:
        for fds in (self._fds, self._vectors, *self._peers.values()):
            while fds:
                os.close(fds.pop())

    # As a Device.

    @property
    def window(self) -> Window:
        """Window with the shared memory; only when connected."""
        assert self._window is not None
        return self._window

    @property
    def vector_count(self) -> int:
        """How many vectors have arrived so far."""
        return len(self._vectors)

    @property
    def settled(self) -> bool:
        """Whether no more vectors will arrive: the handshake is over."""
        return time.monotonic() - self._connected_at > _SETTLE

    @property
    def lost(self) -> bool:
        """Whether its memory is gone: its file was truncated."""
        return self._mapping is not None and self._mapping.lost

    def alarms(self) -> Iterator[int]:
        """Return the descriptor that is readable when the memory is lost."""
        if self._mapping is not None:
            yield self._mapping.fileno()

    def vector(self, index: int) -> int | None:
        """Return the eventfd of a vector; None if it has not arrived."""
        return self._vectors[index] if index < len(self._vectors) else None

    def doorbell(self, peer: int, vector: int) -> Call | None:
        """Return a peer's doorbell, which the caller closes; None without that peer.

        It is a duplicate: the peer may disconnect while a ring still uses it.
        """
        fds = self._peers.get(peer, [])
        return Eventfd(os.dup(fds[vector])) if vector < len(fds) else None

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer's doorbell now, or when the peer connects."""
        fds = self._peers.get(peer, [])
        if vector < len(fds):
            _signal(fds[vector])
        elif len(self._owed) < MAX_DOORBELLS:  # the peer's number is the daemon's word
            self._owed.add((peer, vector))

    def close(self) -> None:
        """Close the connection, and unmap the memory."""
        self._window = self._mapping = None
        self._undo.close()


def _signal(fd: int) -> None:
    """Signal an eventfd, or a socket in its place, without waiting."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        signal_eventfd(fd)
        return
    # BlockingIOError: it is full of signals that the master has not taken.
    # ConnectionError: the master has ended.
    with (
        socket.socket(fileno=os.dup(fd)) as ours,
        suppress(BlockingIOError, ConnectionError),
    ):
        ours.send(_ONE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
