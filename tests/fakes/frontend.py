# SPDX-License-Identifier: Apache-2.0
"""A fake front-end: it sends what a stock QEMU sends, in the same order.

A `FrontEnd` sends through a transport.  `Direct` calls a back-end in this process;
`Socket` connects to the socket of a daemon.
"""

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from tests.unix_socket import connected
from tests.waiting import TIMEOUT, is_readable
from vhostpci_host.fds import Fd
from vhostpci_host.vhost_user.backend import Answer, Backend
from vhostpci_host.vhost_user.front_end_setup import Quiesce
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import HeaderFlag, ProtocolFeature, Request
from vhostpci_shared.virtio import Feature

USER_BASE = 0x7F00_0000_0000
NO_FEATURES = Feature(0)
NO_PROTOCOL_FEATURES = ProtocolFeature(0)
WITH_SLOTS = ~ProtocolFeature.GPA_ADDRESSES
"""What QEMU 7.2 to 11.0 know of what we offer."""
ALL_BUT_SLOTS = WITH_SLOTS & ~ProtocolFeature.CONFIGURE_MEM_SLOTS


class Refused(Exception):
    """The back-end answered a request with an error."""


class Dropped(Exception):
    """The back-end closed the connection."""


class Transport(Protocol):
    """A way to a back-end; each call returns or raises within seconds."""

    def send(self, data: bytes, fds: Sequence[int]) -> None: ...

    def receive(self) -> bytes: ...

    def close(self) -> None: ...


class Direct:
    """A transport to a back-end in this process; `quiesced` gets each Quiesce."""

    def __init__(
        self, backend: Backend, quiesced: Callable[[frozenset[int]], None] | None = None
    ) -> None:
        self.backend = backend
        self.refusals: list[str] = []
        self._quiesced = quiesced or (lambda rings: None)
        self._replies: list[bytes] = []

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        size = vu.Header.layout.size
        header = vu.Header.parse(data[:size])
        ours = [Fd(os.dup(fd)) for fd in fds]
        outcome = self.backend.receive(Message(header, data[size:], ours))
        while isinstance(outcome, Quiesce):
            self._quiesced(outcome.rings)
            outcome = self.backend.resume()
        self._take(outcome)

    def _take(self, answer: Answer) -> None:
        if answer.refusal:
            self.refusals.append(answer.refusal)
        if answer.reply:
            self._replies.append(answer.reply)

    def receive(self) -> bytes:
        assert self._replies, "the back-end sent no reply"
        return self._replies.pop(0)

    @contextmanager
    def refuses(self, match: str) -> Iterator[None]:
        """Expect a refusal without a reply, after which the connection goes on."""
        before = len(self.refusals)
        yield
        new = self.refusals[before:]
        assert any(re.search(match, one) for one in new), (match, new)

    def close(self) -> None:
        assert not self._replies, (
            f"replies that the front-end has not read: {self._replies}"
        )
        self.backend.close()


class Socket:
    """A transport that is connected to a daemon's vhost-user socket."""

    def __init__(self, path: Path) -> None:
        self.socket = connected(path, TIMEOUT)

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self.socket, [data], list(fds))
        except ConnectionError as error:
            raise Dropped(str(error)) from error

    def receive(self) -> bytes:
        header = self._exactly(vu.Header.layout.size)
        return header + self._exactly(vu.Header.parse(header).size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except ConnectionError as error:
                raise Dropped(str(error)) from error
            if not piece:
                raise Dropped("the back-end closed the connection")
            data += piece
        return data

    def close(self) -> None:
        self.socket.close()


@dataclass(frozen=True, slots=True)
class RingAt:
    """The place of a ring, in guest physical addresses."""

    index: int
    size: int = 256
    desc: int = 0x10000
    avail: int = 0x12000
    used: int = 0x14000
    base: int = 0

    @classmethod
    def nth(cls, index: int, *, size: int = 256, base: int = 0, above: int = 0) -> Self:
        """Return a ring in 64 KiB that it shares with no other ring.

        Args:
            index: the ring's.
            size: its number of entries.
            base: where it starts.
            above: the address above which all rings are.
        """
        start = above + 0x10000 * (index + 1)
        return cls(index, size, start, start + 0x4000, start + 0x8000, base)


def region(size: int, *, guest_addr: int = 0, offset: int = 0) -> vu.MemRegion:
    """Return a region with the user address that this front-end gives it."""
    return vu.MemRegion(guest_addr, size, USER_BASE + guest_addr, offset)


@dataclass
class FrontEnd:
    """A stock QEMU with one vhost-user card."""

    transport: Transport
    regions: list[tuple[vu.MemRegion, int]]
    queue_pairs: int = 1
    acks: ProtocolFeature = ALL_BUT_SLOTS
    need_reply: bool = False
    """Whether to ask for a reply to each request, as User Mode Linux does."""
    packed: bool = False
    has_iommu: bool = False
    """Whether the VM has one, behind which a confined master's card is."""
    features: Feature = NO_FEATURES
    protocol_features: ProtocolFeature = NO_PROTOCOL_FEATURES
    user_base: int = USER_BASE
    """The address in this front-end of guest physical address 0."""
    kicks: dict[int, int] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection without stopping the rings."""
        self.transport.close()
        for fd in (*self.kicks.values(), *self.calls.values()):
            os.close(fd)
        self.kicks, self.calls = {}, {}

    # One message.

    def send(
        self,
        request: Request,
        payload: vu.Payload | None = None,
        *fds: int,
        need_reply: bool = False,
    ) -> None:
        """Send a request; raise `Refused` if it asks for a reply and gets an error."""
        acks = ProtocolFeature.REPLY_ACK in self.protocol_features
        asks = acks and (need_reply or self.need_reply)
        flags = HeaderFlag.NEED_REPLY if asks else 0
        self.transport.send(vu.message(request, payload, flags), fds)
        if asks and (answer := vu.U64.parse(self._reply(request))).value:
            raise Refused(f"{request.name}: {answer.value}")

    def ask(self, request: Request, payload: vu.Payload | None = None) -> bytes:
        """Send a request that always has a reply; return the reply's payload."""
        self.transport.send(vu.message(request, payload), ())
        return self._reply(request)

    def _reply(self, request: Request) -> bytes:
        data = self.transport.receive()
        size = vu.Header.layout.size
        header = vu.Header.parse(data[:size])
        assert header.request == request, f"a reply to {header.name}"
        assert header.flags == vu.VERSION | HeaderFlag.REPLY
        return data[size:]

    # What QEMU does, in QEMU's order.

    def connect(self) -> None:
        """Send what QEMU sends when its chardev connects."""
        offered = Feature(vu.U64.parse(self.ask(Request.GET_FEATURES)).value)
        # A card has packed rings only if its option `packed` is on.
        self.features = offered if self.packed else offered & ~Feature.F_RING_PACKED
        if not self.has_iommu:
            # A QEMU gives it to its driver, and keeps it from the back-end.
            self.features &= ~Feature.F_ACCESS_PLATFORM
        if Feature.F_PROTOCOL_FEATURES in offered:
            data = self.ask(Request.GET_PROTOCOL_FEATURES)
            wanted = ProtocolFeature(vu.U64.parse(data).value) & self.acks
            self.protocol_features = wanted
            self.send(Request.SET_PROTOCOL_FEATURES, vu.U64(wanted))
        if ProtocolFeature.MQ in self.protocol_features:
            self.ask(Request.GET_QUEUE_NUM)
        self.send(Request.SET_OWNER)
        self.ask(Request.GET_FEATURES)
        for index in range(2 * self.queue_pairs):
            self._new_call(index)
        self.enable()

    def enable(self, pairs: int = 1, *, on: bool = True) -> None:
        """Enable the first pairs and no others, as at each reset of the card."""
        if Feature.F_PROTOCOL_FEATURES not in self.features:
            return
        for index in range(2 * self.queue_pairs):
            num = int(on and index // 2 < pairs)
            self.send(Request.SET_VRING_ENABLE, vu.VringState(index, num))

    def driver_ok(self, rings: Iterable[RingAt], *, pairs: int = 1) -> None:
        """Send what QEMU sends when the guest's driver sets DRIVER_OK."""
        self.enable(pairs)
        self.send(Request.SET_FEATURES, vu.U64(self.features))
        self.set_memory()
        for ring in rings:
            self.start_ring(ring)

    def set_memory(self) -> None:
        """Send SET_MEM_TABLE with all regions."""
        table = vu.MemTable(tuple(region for region, _ in self.regions))
        fds = [fd for _, fd in self.regions]
        self.send(Request.SET_MEM_TABLE, table, *fds, need_reply=True)

    def start_ring(self, ring: RingAt) -> None:
        """Send NUM, BASE, ADDR, KICK and CALL, with new eventfds."""
        self.send(Request.SET_VRING_NUM, vu.VringState(ring.index, ring.size))
        self.send(Request.SET_VRING_BASE, vu.VringState(ring.index, ring.base))
        self.send(Request.SET_VRING_ADDR, self.address(ring))
        self._new_kick(ring.index)
        self._new_call(ring.index)

    def address(self, ring: RingAt) -> vu.VringAddr:
        """Return the addresses of a ring, counted as QEMU counts them."""
        gpa = ProtocolFeature.GPA_ADDRESSES in self.protocol_features
        base = 0 if gpa else self.user_base
        return vu.VringAddr(
            ring.index,
            0,
            desc=base + ring.desc,
            used=base + ring.used,
            avail=base + ring.avail,
        )

    def _new_kick(self, index: int) -> None:
        self._replace(self.kicks, index)
        kick = vu.VringFd(index)
        self.send(Request.SET_VRING_KICK, kick, self.kicks[index])
        os.eventfd_write(self.kicks[index], 1)  # QEMU's first kick comes at once

    def _new_call(self, index: int) -> None:
        self._replace(self.calls, index)
        self.send(Request.SET_VRING_CALL, vu.VringFd(index), self.calls[index])

    def _replace(self, fds: dict[int, int], index: int) -> None:
        if index in fds:
            os.close(fds[index])
        fds[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def stop_ring(self, index: int) -> int:
        """Send GET_VRING_BASE; return the index at which the ring stopped."""
        data = self.ask(Request.GET_VRING_BASE, vu.VringState(index, 0))
        state = vu.VringState.parse(data)
        assert state.index == index
        return state.num

    def kick(self, index: int) -> None:
        """Kick a ring, as the driver does after it made a buffer available."""
        os.eventfd_write(self.kicks[index], 1)

    def called(self, index: int, timeout: float = TIMEOUT) -> bool:
        """Return whether a call came in time, and clear it."""
        readable = is_readable(self.calls[index], timeout)
        if readable:
            os.eventfd_read(self.calls[index])
        return readable
