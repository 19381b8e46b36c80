# SPDX-License-Identifier: Apache-2.0
"""A back-end of vhost-user, as the agent's data plane meets one: DPDK's, by default.

It answers when the test says so (`serve`), so that nothing runs beside the test.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.unix_socket import connected
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature

FEATURES = (
    Feature.F_VERSION_1
    | Feature.F_PROTOCOL_FEATURES
    | Feature.NET_F_MRG_RXBUF
    | Feature.NET_F_CSUM
    | Feature.F_RING_PACKED
)
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.NET_MTU


class FakeBackEnd:
    """A back-end that follows the protocol until the test has it do something else.

    Args:
        connection: to the agent; it is the fake's to close.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.features = int(FEATURES)
        self.protocol = PROTOCOL
        self.queue_pairs = 8
        self.memory_slots = 8
        self.used = 0
        """What it says to GET_VRING_BASE."""
        self.heard: list[Request] = []
        self.said: dict[Request, list[vu.Payload]] = {}
        """What came with each request, in order."""
        self.fds: dict[Request, list[int]] = {}
        """The descriptors that came, which are the fake's to close."""
        self.instead: dict[Request, Callable[[], bytes | None]] = {}
        """What is sent in place of a reply; None for nothing."""
        self.refuses: set[Request] = set()
        """What it says no to, if it is asked (REPLY_ACK)."""
        self.acknowledges = False
        self.lies = False
        """Whether it may have said another thing than it stands by."""
        self._undo = ExitStack()
        self._undo.callback(connection.close)

    @classmethod
    def connect(cls, path: Path) -> "FakeBackEnd":
        """Return one that has connected to a socket."""
        return cls(connected(path))

    def serve(self) -> None:
        """Read what has come, and answer it.

        Raises:
            EOFError: the agent has closed the connection.
        """
        # No more: the agent reads its answers in turns, and the buffer must hold them.
        for _ in range(64):
            try:
                self._serve_one()
            except BlockingIOError:
                return

    def _serve_one(self) -> None:
        size = vu.Header.layout.size
        data, fds, _, _ = socket.recv_fds(self.connection, size, vu.MAX_FDS)
        for fd in fds:
            self._undo.callback(os.close, fd)
        if not data:
            raise EOFError("the agent has closed the connection")
        header = vu.Header.parse(data)
        payload = self._payload(header.size)
        request = Request(header.request)
        shape = vu.SHAPES[request]
        shape.check_fds(fds)
        said = shape.payload.parse(payload)
        self.heard.append(request)
        self.said.setdefault(request, []).append(said)
        self.fds.setdefault(request, []).extend(fds)
        self._answer(header, request, said)

    def _payload(self, size: int) -> bytes:
        """Read the rest of a message, which the agent may send in two pieces."""
        data = b""
        while len(data) < size:
            data += self.connection.recv(size - len(data))
        return data

    def _answer(self, header: vu.Header, request: Request, said: vu.Payload) -> None:
        if request in self.instead:
            reply = self.instead[request]()
            if reply is not None:
                self.send(reply)
        elif request in vu.REPLIES:
            self.send(vu.reply(request, self._reply(request, said)))
        elif header.need_reply:
            assert self.acknowledges or self.lies, (
                "a reply was asked for without REPLY_ACK"
            )
            self.send(vu.reply(request, vu.U64(int(request in self.refuses))))
        if request is Request.SET_PROTOCOL_FEATURES:
            assert isinstance(said, vu.U64)
            agreed = ProtocolFeature(said.value)
            assert self.lies or not agreed & ~self.protocol, "more than was offered"
            self.acknowledges = ProtocolFeature.REPLY_ACK in agreed
        if request is Request.SET_FEATURES:
            assert isinstance(said, vu.U64)
            assert self.lies or not said.value & ~self.features, "more than was offered"

    def _reply(self, request: Request, said: vu.Payload) -> vu.Payload:
        numbers = {
            Request.GET_FEATURES: self.features,
            Request.GET_PROTOCOL_FEATURES: self.protocol,
            Request.GET_QUEUE_NUM: self.queue_pairs,
            Request.GET_MAX_MEM_SLOTS: self.memory_slots,
        }
        if request in numbers:
            return vu.U64(numbers[request])
        assert isinstance(said, vu.VringState)
        return vu.VringState(said.index, self.used)

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send these bytes to the agent."""
        socket.send_fds(self.connection, [data], fds)

    @property
    def was_left(self) -> bool:
        """Whether the agent has said that nothing comes any more."""
        try:
            self.serve()
        except (EOFError, ConnectionError):
            return True
        return False

    def last(self, request: Request) -> vu.Payload:
        """Return what came last with this request."""
        return self.said[request][-1]

    def close(self) -> None:
        """Die: close the connection and all descriptors."""
        self._undo.close()
