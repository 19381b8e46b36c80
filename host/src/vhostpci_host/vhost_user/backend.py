# SPDX-License-Identifier: Apache-2.0
"""The back-end's half of vhost-user, without any input or output.

Theory of operation.  `receive` takes one message and returns what to do: an
`Answer` (the bytes to send back, maybe none), or a `Quiesce`: the slave's agent must
let go of these rings before there is an answer.  Whoever calls sees to that, and
calls `resume`; until then no further message may come in.  A message that breaks
the protocol raises ProtocolError, and the connection is over, unless the
front-end asked for a reply: then it gets one that says no.

There is one handler for each request, named like it, found through `HANDLERS`.  A
handler that may have to wait is a generator that yields its Quiesce.  So a whole
session runs in a test as a list of calls.

A front-end may describe its rings in any order; QEMU, DPDK and User Mode Linux each
do it in another.  So no handler asks what came before it.  The state of a ring is
what its requests add up to (`Vring.ready`)::

            SET_VRING_NUM, _ADDR, _KICK, SET_MEM_TABLE (any order)
    STOPPED ─────────────────────────────────────────────────────► READY
       ▲     GET_VRING_BASE, RESET_DEVICE                            │
       └─────────────────────────────────────────────────────────────┘

A ready ring runs if it is enabled as well.  What changes a ready ring is done
between Quiesce and resume, when nobody touches it.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from ..fds import Fd, Notifier
from ..memory.regions import MemoryMap, Windows
from .message import Message
from .vring import Vring

FEATURES = (
    Feature.F_VERSION_1
    | Feature.F_PROTOCOL_FEATURES
    | Feature.F_EVENT_IDX
    | Feature.F_INDIRECT_DESC
    | Feature.F_ANY_LAYOUT
    | Feature.NET_F_MRG_RXBUF
    | Feature.NET_F_CSUM
    | Feature.NET_F_GUEST_CSUM
    | Feature.NET_F_GUEST_TSO4
    | Feature.NET_F_GUEST_TSO6
    | Feature.NET_F_GUEST_ECN
    | Feature.NET_F_HOST_TSO4
    | Feature.NET_F_HOST_TSO6
    | Feature.NET_F_HOST_ECN
    | Feature.NET_F_MTU
)
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.RARP
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
MIN_MTU = 68
MAX_MTU = 65535


@dataclass(frozen=True, slots=True)
class Quiesce:
    """The agent must stop touching these rings; then call `resume`."""

    rings: frozenset[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply's bytes, if one is due; and why the request was refused, if it was."""

    reply: bytes = b""
    refusal: str = ""


Wait = Generator[Quiesce, None, None]
Steps = Generator[Quiesce, None, vu.Payload | None]


class Backend:
    """What one front-end has said, from its connect to its disconnect.

    Args:
        queue_pairs: how many the device has; it offers multiqueue if several.
        windows: where the front-end's memory may lie.
    """

    def __init__(self, queue_pairs: int, windows: Windows) -> None:
        self.offered = FEATURES | (Feature.NET_F_MQ if queue_pairs > 1 else Feature(0))
        self.features = Feature(0)
        self.protocol_features = ProtocolFeature(0)
        self.memory = MemoryMap()
        self.mtu = 0
        self.rings = [Vring() for _ in range(2 * queue_pairs)]
        self._queue_pairs = queue_pairs
        self._windows = windows
        self._channel: Fd | None = None
        self._pending: Generator[Quiesce, None, Answer] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a Quiesce is not yet answered by `resume`."""
        return self._pending is not None

    def receive(self, message: Message) -> Answer | Quiesce:
        """Take one message; it, and its descriptors, are ours from here on.

        Raises:
            ProtocolError: the front-end broke the protocol; it must go.
        """
        assert not self.waiting, "a message before the last one's answer"
        self._pending = self._serve(message)
        return self.resume()

    def resume(self) -> Answer | Quiesce:
        """Go on: nobody touches the rings of the last Quiesce any more.

        Raises:
            ProtocolError: the front-end broke the protocol; it must go.
        """
        assert self._pending is not None, "nothing is waiting"
        steps, self._pending = self._pending, None
        try:
            quiesce = next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        self._pending = steps
        return quiesce

    def runs(self, index: int) -> bool:
        """Whether the front-end wants ring `index` to be served."""
        return self.rings[index].ready and self.enabled(index)

    def enabled(self, index: int) -> bool:
        """Whether it is enabled: from the start, if the front-end can't say so."""
        told = self.rings[index].enable
        return (
            Feature.F_PROTOCOL_FEATURES not in self.features if told is None else told
        )

    def used_index(self, index: int) -> int:
        """Read a ready ring's used index: packets complete in order, so it is where
        the ring stands, whatever anybody says."""
        ring = self.rings[index]
        if ring.areas is None:
            return ring.base
        address = ring.areas.device + virtio.USED_IDX_OFFSET
        data = self._windows.read(*self.memory.locate(address, 2), 2)
        return int.from_bytes(data, "little") if len(data) == 2 else ring.base

    def close(self) -> None:
        """Let go of everything, when the front-end is gone."""
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        for ring in self.rings:
            ring.reset()
        self._set_channel(None)

    def _serve(self, message: Message) -> Generator[Quiesce, None, Answer]:
        header = message.header
        with message:
            try:
                payload = yield from self._dispatch(message)
            except ProtocolError as error:
                text = f"{header.name}: {error}"
                if not self._wants_ack(header):
                    raise ProtocolError(text) from error
                return Answer(vu.reply(header.request, vu.U64(1)), text)
        if payload is None and self._wants_ack(header):
            payload = vu.U64(0)
        return Answer(b"" if payload is None else vu.reply(header.request, payload))

    def _dispatch(self, message: Message) -> Steps:
        try:
            handler = HANDLERS[Request(message.header.request)]
        except (ValueError, KeyError):
            raise ProtocolError("a request that we don't offer") from None
        payload = message.parse(vu.SHAPES[Request(message.header.request)])
        result = handler(self, payload, message)
        if isinstance(result, Generator):
            result = yield from result
        return result

    def _wants_ack(self, header: vu.Header) -> bool:
        """Whether a plain yes or no is due.

        User Mode Linux asks for it with the very SET_PROTOCOL_FEATURES that
        negotiates REPLY_ACK: so this is called when the request is done.
        """
        acks = ProtocolFeature.REPLY_ACK in self.protocol_features
        return acks and header.need_reply and header.request not in vu.REPLIES

    def _ring(self, index: int) -> Vring:
        """Return the ring of an index that has not been cut to any width."""
        if index >= len(self.rings):
            raise ProtocolError(f"vring {index}; there are {len(self.rings)}")
        return self.rings[index]

    def _stopped(self, indexes: Iterable[int]) -> Wait:
        """Have these rings quiesced, those of them that are ready."""
        ready = frozenset(i for i in indexes if self.rings[i].ready)
        if not ready:
            return
        yield Quiesce(ready)
        for index in ready:
            self.rings[index].base = self.used_index(index)

    def _all(self) -> range:
        return range(len(self.rings))

    def _set_channel(self, fd: Fd | None) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = fd

    # Features.

    def _get_features(self, _: vu.Empty, __: Message) -> vu.Payload:
        return vu.U64(self.offered)

    def _set_features(self, payload: vu.U64, _: Message) -> Steps:
        extra = payload.value & ~self.offered
        if extra:
            raise ProtocolError(f"not offered: {virtio.names(Feature(extra))}")
        if payload.value != self.features:
            yield from self._stopped(self._all())
        self.features = Feature(payload.value)
        return None

    def _get_protocol_features(self, _: vu.Empty, __: Message) -> vu.Payload:
        return vu.U64(PROTOCOL_FEATURES)

    def _set_protocol_features(self, payload: vu.U64, _: Message) -> None:
        extra = payload.value & ~PROTOCOL_FEATURES
        if extra:
            raise ProtocolError(f"not offered: {virtio.names(ProtocolFeature(extra))}")
        self.protocol_features = ProtocolFeature(payload.value)

    def _get_queue_num(self, _: vu.Empty, __: Message) -> vu.Payload:
        return vu.U64(self._queue_pairs)

    def _get_max_mem_slots(self, _: vu.Empty, __: Message) -> vu.Payload:
        return vu.U64(md.MAX_REGIONS)

    # The device as a whole.

    def _set_owner(self, _: vu.Empty, __: Message) -> None:
        """Nothing to do: a connection is its own owner."""

    def _reset_owner(self, _: vu.Empty, __: Message) -> None:
        """Ignored, as the specification advises: others lost state by it."""

    def _reset_device(self, _: vu.Empty, __: Message) -> Steps:
        yield from self._stopped(self._all())
        for ring in self.rings:
            ring.reset()
            ring.enable = False
        self.features, self.mtu = Feature(0), 0
        return None

    def _set_backend_req_fd(self, _: vu.Empty, message: Message) -> None:
        """Keep it: we ask nothing, but User Mode Linux needs it to be taken."""
        self._set_channel(message.take())

    def _net_set_mtu(self, payload: vu.U64, _: Message) -> None:
        if not MIN_MTU <= payload.value <= MAX_MTU:
            raise ProtocolError(f"MTU {payload.value}, not {MIN_MTU} to {MAX_MTU}")
        self.mtu = payload.value

    def _send_rarp(self, _: vu.U64, __: Message) -> None:
        """Nothing to do: the master's first packet tells the slave's bridge."""

    # Memory.

    def _set_mem_table(self, payload: vu.MemTable, message: Message) -> Steps:
        if len(message.fds) != len(payload.regions):
            raise ProtocolError(
                f"{len(message.fds)} descriptors for {len(payload.regions)} regions"
            )
        memory = MemoryMap()
        for region, fd in zip(payload.regions, message.fds, strict=True):
            memory = memory.add(self._windows.place(region, fd))
        yield from self._change_memory(memory)
        return None

    def _add_mem_reg(self, payload: vu.SingleRegion, message: Message) -> Steps:
        memory = self.memory.add(self._windows.place(payload.region, message.fds[0]))
        if memory != self.memory:
            yield from self._change_memory(memory)
        return None

    def _rem_mem_reg(self, payload: vu.SingleRegion, _: Message) -> Steps:
        memory = self.memory.remove(payload.region)
        if memory != self.memory:
            yield from self._change_memory(memory)
        return None

    def _change_memory(self, memory: MemoryMap) -> Wait:
        """Find the rings again; one that is in no region waits for its region."""
        yield from self._stopped(self._all())
        self.memory = memory
        for ring in self.rings:
            try:
                ring.translate(memory)
            except ProtocolError:
                continue

    # Rings.

    def _set_vring_num(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        num = virtio.check_split_size(payload.num)
        if num != ring.size:
            yield from self._stopped([payload.index])
            ring.size = num
            ring.translate(self.memory)
        return None

    def _set_vring_addr(self, payload: vu.VringAddr, _: Message) -> Steps:
        ring = self._ring(payload.index)
        if payload != ring.addr:
            yield from self._stopped([payload.index])
            ring.addr = payload
            ring.translate(self.memory)
        return None

    def _set_vring_base(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        if payload.num >= 2**16:
            raise ProtocolError(f"base {payload.num} of a ring that counts to 65535")
        yield from self._stopped([payload.index])
        ring.base = payload.num
        return None

    def _get_vring_base(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        yield from self._stopped([payload.index])
        ring.stop()
        return vu.VringState(payload.index, ring.base)

    def _set_vring_kick(self, payload: vu.VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        ring.set_notifier("kick", _notifier(payload, message))
        if not ring.kicked:
            ring.kicked = True
            ring.translate(self.memory)

    def _set_vring_call(self, payload: vu.VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        ring.set_notifier("call", _notifier(payload, message))

    def _set_vring_err(self, payload: vu.VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        ring.set_notifier("err", _notifier(payload, message))

    def _set_vring_enable(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        if payload.num > 1:
            raise ProtocolError(f"enable {payload.num}, neither 0 nor 1")
        if not payload.num and self.enabled(payload.index):
            yield from self._stopped([payload.index])
        ring.enable = bool(payload.num)
        return None


def _notifier(payload: vu.VringFd, message: Message) -> Notifier | None:
    """Take the notifier that the payload promises, or None with its flag."""
    if len(message.fds) != (not payload.nofd):
        raise ProtocolError(
            f"{len(message.fds)} descriptors and the flag for none "
            f"{'set' if payload.nofd else 'not set'}"
        )
    fd = message.take()
    if fd is None:
        return None
    try:
        return Notifier.adopt(fd)
    finally:
        fd.close()


HANDLERS: dict[
    Request, Callable[[Backend, Any, Message], vu.Payload | Steps | None]
] = {
    Request.GET_FEATURES: Backend._get_features,
    Request.SET_FEATURES: Backend._set_features,
    Request.SET_OWNER: Backend._set_owner,
    Request.RESET_OWNER: Backend._reset_owner,
    Request.SET_MEM_TABLE: Backend._set_mem_table,
    Request.SET_VRING_NUM: Backend._set_vring_num,
    Request.SET_VRING_ADDR: Backend._set_vring_addr,
    Request.SET_VRING_BASE: Backend._set_vring_base,
    Request.GET_VRING_BASE: Backend._get_vring_base,
    Request.SET_VRING_KICK: Backend._set_vring_kick,
    Request.SET_VRING_CALL: Backend._set_vring_call,
    Request.SET_VRING_ERR: Backend._set_vring_err,
    Request.GET_PROTOCOL_FEATURES: Backend._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: Backend._set_protocol_features,
    Request.GET_QUEUE_NUM: Backend._get_queue_num,
    Request.SET_VRING_ENABLE: Backend._set_vring_enable,
    Request.SEND_RARP: Backend._send_rarp,
    Request.NET_SET_MTU: Backend._net_set_mtu,
    Request.SET_BACKEND_REQ_FD: Backend._set_backend_req_fd,
    Request.RESET_DEVICE: Backend._reset_device,
    Request.GET_MAX_MEM_SLOTS: Backend._get_max_mem_slots,
    Request.ADD_MEM_REG: Backend._add_mem_reg,
    Request.REM_MEM_REG: Backend._rem_mem_reg,
}
