# SPDX-License-Identifier: Apache-2.0
"""A client of a daemon's ivshmem socket, without a VM."""

import array
import contextlib
import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.unix_socket import connected
from tests.waiting import TIMEOUT, is_readable
from vhostpci_shared import access, ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared.ivshmem import Client, OwnVector, PeerGone, PeerVector
from vhostpci_shared.wire import ProtocolError


class SlaveClient:
    """A slave's QEMU, or the agent of a slave process, at the ivshmem socket."""

    def __init__(self, path: Path) -> None:
        self.client = Client()
        self.memory: mmap.mmap | None = None
        self.own: list[int] = []
        self.peers: dict[int, list[int]] = {}
        self.gone: list[int] = []
        self.socket = connected(path, TIMEOUT)

    def read(self) -> None:
        """Read one message and keep what it brings."""
        size = array.array("i").itemsize
        data, ancillary, flags, _ = self.socket.recvmsg(8, socket.CMSG_LEN(4 * size))
        assert not flags & socket.MSG_CTRUNC
        if not data:
            raise EOFError
        fds = array.array("i", b"".join(piece for _, _, piece in ancillary))
        assert len(fds) <= 1, "QEMU would lose all but the first"
        fd = fds[0] if fds else -1
        try:
            event = self.client.feed(ivshmem.decode(data), bool(fds))
        except ProtocolError:
            if fds:
                os.close(fd)
            raise
        self._take(event, fd)

    def _take(self, event: ivshmem.Event | None, fd: int) -> None:
        match event:
            case ivshmem.SharedMemory():
                # Only the metadata: in tests the front-end is this process, too, and
                # the daemon looks whether a front-end maps its RAM and the metadata.
                offset = os.fstat(fd).st_size - md.SIZE
                self.memory = mmap.mmap(fd, md.SIZE, offset=offset)
                os.close(fd)
            case OwnVector():
                self.own.append(fd)
            case PeerVector(peer):
                self.peers.setdefault(peer, []).append(fd)
            case PeerGone(peer):
                self.gone.append(peer)
                for old in self.peers.pop(peer):
                    os.close(old)

    def handshake(self, vectors: int = 3) -> Self:
        """Read until all our vectors have arrived, as QEMU does when it starts."""
        while len(self.own) < vectors:
            self.read()
        return self

    def catch_up(self) -> None:
        """Read messages until none comes for 0.1 seconds."""
        while is_readable(self.socket.fileno(), 0.1):
            self.read()

    @contextlib.contextmanager
    def metadata(self) -> Iterator[access.Metadata]:
        assert self.memory is not None
        view = memoryview(self.memory)
        metadata = access.Metadata(view)
        try:
            yield metadata
        finally:
            metadata.release()
            view.release()

    def interrupted(self, vector: int) -> bool:
        readable = is_readable(self.own[vector], TIMEOUT)
        if readable:
            os.eventfd_read(self.own[vector])
        return bool(readable)

    def close(self) -> None:
        self.socket.close()
        for fd in (*self.own, *(fd for fds in self.peers.values() for fd in fds)):
            os.close(fd)
        if self.memory is not None:
            self.memory.close()
