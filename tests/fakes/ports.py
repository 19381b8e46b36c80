# SPDX-License-Identifier: Apache-2.0
"""Fake connections of a device, which record messages instead of sending them."""

import os
import select
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vhostpci_host.errors import HostError
from vhostpci_host.interfaces import Plug
from vhostpci_host.ivshmem.peers import Outgoing
from vhostpci_shared.ivshmem import Client, OwnVector, PeerGone, PeerVector


class RecordedMaster:
    """A front-end's connection (a `MasterPort`).

    Args:
        closed: called within `drop`, as the real connection calls it.
        pid: the front-end's process.
        returning: whether that was here lately and did nothing useful.
    """

    def __init__(
        self, closed: Callable[[], None], pid: int = 0, *, returning: bool = False
    ) -> None:
        self.pid = pid
        self.returning = returning
        self.hangs = ""
        self._closed = closed
        self.sent: list[bytes] = []
        self.paused = False
        self.dropped: str | None = None

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def drop(self, reason: str) -> None:
        assert self.dropped is None, "dropped twice"
        self.dropped = reason
        self._closed()


class RecordedSlave:
    """An ivshmem connection (a `SlavePort`), and a QEMU that reads it at once.

    It fails the test at what would end a real QEMU: an ID that is used again, a peer
    that leaves twice, a vector too many.
    """

    def __init__(
        self,
        vectors: int,
        pid: int = 0,
        *,
        is_process: bool = False,
        takes_kicks: bool = False,
    ) -> None:
        self.pid = pid
        self.is_process = is_process
        self.takes_kicks = takes_kicks
        self.client = Client()
        self.messages: list[tuple[int, bool]] = []
        self.own: list[int] = []
        self.peers: dict[int, list[int]] = {}
        self.behind = False
        self.dropped: str | None = None
        self._vectors = vectors
        self._gone: set[int] = set()

    def send(self, messages: list[Outgoing]) -> None:
        for outgoing in messages:
            self.messages.append((outgoing.message, outgoing.fd is not None))
            fd = None if outgoing.fd is None else os.dup(outgoing.fd.fileno())
            self.feed(outgoing.message, fd)

    def feed(self, message: int, fd: int | None) -> None:
        """Act on a message as QEMU does."""
        event = self.client.feed(message, fd is not None)
        match event:
            case OwnVector(vector):
                assert fd is not None
                assert vector < self._vectors, "QEMU: too many eventfds received"
                self.own.append(fd)
            case PeerVector(peer, vector):
                assert fd is not None
                assert peer not in self._gone, "QEMU: use after free"
                self._check_doorbell(fd, vector)
                self.peers.setdefault(peer, []).append(fd)
            case PeerGone(peer):
                self._gone.add(peer)
                for gone in self.peers.pop(peer):
                    os.close(gone)
            case _ if fd is not None:
                os.close(fd)
            case _:
                assert not self.client.connected, "QEMU: a peer goes twice"

    def _check_doorbell(self, fd: int, vector: int) -> None:
        if self.takes_kicks:
            assert vector < 2 * self._vectors, "more than a kick and a call a ring"
            return
        what = os.readlink(f"/proc/self/fd/{fd}")
        assert what == "anon_inode:[eventfd]", "KVM: no such ioeventfd"
        assert vector < self._vectors, "QEMU: too many eventfds received"

    def unread(self) -> bool:
        return self.behind

    def drop(self, reason: str) -> None:
        self.dropped = reason

    def ring(self, peer: int, vector: int) -> None:
        """Ring a doorbell; QEMU ignores an unknown peer or vector."""
        fds = self.peers.get(peer, [])
        if vector < len(fds):
            os.eventfd_write(fds[vector], 1)

    def interrupted(self, vector: int) -> bool:
        """Return whether a vector of the slave was signalled, and clear it."""
        if not select.select([self.own[vector]], [], [], 0)[0]:
            return False
        os.eventfd_read(self.own[vector])
        return True

    def close(self) -> None:
        for fd in (*self.own, *(fd for fds in self.peers.values() for fd in fds)):
            os.close(fd)
        self.own, self.peers = [], {}


class RecordedSockets:
    """Listening sockets (`window_socket.Listen`) that no slave connects to."""

    def __init__(self) -> None:
        self.open: list[Path] = []
        self.ever = 0
        self.full = False

    def listen(
        self, path: Path, take: Callable[[socket.socket], None]
    ) -> "RecordedListener":
        assert path not in self.open, "listened at twice"
        if self.full:
            raise HostError("no socket for you")
        self.open.append(path)
        self.ever += 1
        return RecordedListener(partial(self.open.remove, path))

    @property
    def windows(self) -> list[int]:
        """The windows that have a socket, by the number at the end of its name."""
        return [int(path.suffix[1:]) for path in self.open]


class RecordedListener:
    """A listening socket that counts as open until it is closed."""

    def __init__(self, closed: Callable[[], None]) -> None:
        self.close = closed


class RecordedPlugger:
    """A `Plugger` that plugs nothing, and records what it was asked to plug."""

    def __init__(self) -> None:
        self.wanted: frozenset[Plug] = frozenset()
        self.left_out: set[int] = set()
        """The windows that were once wanted and then, even for a moment, not wanted."""
        self.closed = False

    @property
    def windows(self) -> set[int]:
        return {plug.window for plug in self.wanted}

    @property
    def plugged(self) -> frozenset[int]:
        return frozenset(self.windows)

    def adopt(self, plugs: frozenset[Plug], changed: Callable[[], None]) -> None:
        self.wanted = plugs

    def want(self, plugs: frozenset[Plug]) -> None:
        self.left_out |= {plug.window for plug in self.wanted - plugs}
        self.wanted = plugs

    def status(self) -> dict[str, Any]:
        return {"wanted": sorted(self.windows)}

    async def close(self) -> None:
        self.wanted = frozenset()
        self.closed = True
