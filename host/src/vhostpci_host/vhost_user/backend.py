# SPDX-License-Identifier: Apache-2.0
"""The back-end of the vhost-user protocol, without any input or output.

Theory of operation.  `receive` takes one message and returns what the caller must do.
An `Answer` has the bytes to send back, which may be none.  A `Quiesce` names rings that
the slave's agent must stop touching before there is an answer: the caller stops the
agent, and then calls `resume`; until then it must not pass in another message.  A
message that breaks the protocol raises ProtocolError, and the caller closes the
connection.  If the front-end asked for an acknowledgement, the message is instead
answered with a refusal, and the connection goes on.

`HANDLERS` has one handler for each request, and the handler is named like the request.
A handler that may have to wait is a generator that yields its Quiesce.  So a whole
session runs in a test as a list of calls.

QEMU, DPDK and User Mode Linux describe their rings in different orders.  So no handler
checks which requests came before its own.  Whether a ring is ready follows from all its
requests together (`Vring.ready`)::

            SET_VRING_NUM, _ADDR, _KICK, SET_MEM_TABLE (any order)
    STOPPED ─────────────────────────────────────────────────────► READY
       ▲     GET_VRING_BASE, RESET_DEVICE                            │
       └─────────────────────────────────────────────────────────────┘

A ready ring runs if it is enabled as well.  A request that changes a ready ring does so
after `resume`, when the agent no longer touches the ring.
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

# Not F_RING_PACKED: when a back-end dies, QEMU takes a split ring's base from the used
# index in the guest's memory; for a packed ring it cannot.  Not F_ACCESS_PLATFORM: ring
# addresses would be IOVAs.
FEATURES = (
    Feature.F_VERSION_1
    | Feature.F_PROTOCOL_FEATURES
    | Feature.F_EVENT_IDX
    | Feature.F_INDIRECT_DESC
    | Feature.F_ANY_LAYOUT
    # Without MRG_RXBUF, a Linux guest with GUEST_TSO posts some 17 pages a buffer.
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
# Not LOG_SHMFD: the agent does not log which pages it writes, and without this feature
# QEMU refuses to migrate the master.  Not INFLIGHT_SHMFD: QEMU never uses it for a
# network card, so packets must complete in order.  Not CONFIG: QEMU ignores it for a
# network card, with a warning.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.RARP
    | ProtocolFeature.BACKEND_REQ
    # Without it, QEMU gives up on a master with more than eight regions.
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
# The least and the largest MTU that VIRTIO allows.
MIN_MTU = 68
MAX_MTU = 65535


@dataclass(frozen=True, slots=True)
class Quiesce:
    """The rings that the agent must stop touching before `resume` is called."""

    rings: frozenset[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to send, if one is due; and why the request was refused, if it was."""

    reply: bytes = b""
    refusal: str = ""


Wait = Generator[Quiesce, None, None]
Steps = Generator[Quiesce, None, vu.Payload | None]


class Backend:
    """Serve the requests of one front-end, from its connect to its disconnect.

    Args:
        queue_pairs: how many the device has; with several it offers multiqueue.
        windows: the windows in which the front-end's memory may lie.
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
        self._backend_channel: Fd | None = None
        self._pending: Generator[Quiesce, None, Answer] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a Quiesce is not yet answered by `resume`."""
        return self._pending is not None

    def receive(self, message: Message) -> Answer | Quiesce:
        """Serve one message, whose descriptors the back-end takes over.

        Raises:
            ProtocolError: the front-end broke the protocol: close its connection.
        """
        assert not self.waiting, "a message before the last one's answer"
        self._pending = self._serve(message)
        return self.resume()

    def resume(self) -> Answer | Quiesce:
        """Go on with the message: the agent has stopped the rings of the last Quiesce.

        Raises:
            ProtocolError: the front-end broke the protocol: close its connection.
        """
        assert self._pending is not None, "nothing is waiting"
        # Nothing is pending while the message is served: if it raises, none stays.
        steps, self._pending = self._pending, None
        try:
            quiesce = next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        self._pending = steps
        return quiesce

    def runs(self, index: int) -> bool:
        """Whether ring `index` is ready and enabled."""
        return self.rings[index].ready and self.enabled(index)

    def enabled(self, index: int) -> bool:
        """Whether ring `index` is enabled."""
        # QEMU sends SET_VRING_ENABLE even before SET_FEATURES, so what it said counts
        # first.  A front-end that did not acknowledge F_PROTOCOL_FEATURES has no such
        # request, and its rings are enabled from the start.
        said = self.rings[index].enable
        return (
            Feature.F_PROTOCOL_FEATURES not in self.features if said is None else said
        )

    def used_index(self, index: int) -> int:
        """Return the used index in a ready ring's memory; of any other, its base."""
        ring = self.rings[index]
        if ring.areas is None:
            return ring.base
        address = ring.areas.device + virtio.USED_IDX_OFFSET
        # Less than two bytes come back if another process has cut the file.
        data = self._windows.read(*self.memory.locate(address, 2), 2)
        return int.from_bytes(data, "little") if len(data) == 2 else ring.base

    def close(self) -> None:
        """Release everything, because the front-end is gone."""
        # A message that waits still has descriptors; to end its generator closes them.
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        for ring in self.rings:
            ring.reset()
        self._set_backend_channel(None)

    def _serve(self, message: Message) -> Generator[Quiesce, None, Answer]:
        header = message.header
        # Close the descriptors that the handler did not take, however it ends.
        with message:
            try:
                payload = yield from self._dispatch(message)
            except ProtocolError as error:
                text = f"{header.name}: {error}"
                # Without an acknowledgement the front-end would go on as if the request
                # had worked, so its connection has to end.
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
        """Whether the front-end waits for an acknowledgement: 0, or not 0."""
        # Call this after the request is served: User Mode Linux asks for an
        # acknowledgement with the very SET_PROTOCOL_FEATURES that negotiates REPLY_ACK.
        # A request with a reply of its own gets that one reply only.
        acks = ProtocolFeature.REPLY_ACK in self.protocol_features
        return acks and header.need_reply and header.request not in vu.REPLIES

    def _ring(self, index: int) -> Vring:
        """Return the ring of an index that came from the front-end."""
        if index >= len(self.rings):
            raise ProtocolError(f"vring {index}; there are {len(self.rings)}")
        return self.rings[index]

    def _quiesce(self, indexes: Iterable[int]) -> Wait:
        """Quiesce those of these rings that are ready, and read where they stand."""
        ready = frozenset(i for i in indexes if self.rings[i].ready)
        if not ready:
            return
        yield Quiesce(ready)
        # Packets complete in order, so the used index is where the ring goes on: chains
        # that the agent took and did not return are taken again.  Read the index from
        # memory: an agent that is late or dead cannot be asked.
        for index in ready:
            self.rings[index].base = self.used_index(index)

    def _all_rings(self) -> range:
        return range(len(self.rings))

    def _set_backend_channel(self, fd: Fd | None) -> None:
        if self._backend_channel is not None:
            self._backend_channel.close()
        self._backend_channel = fd

    # Features.

    def _get_features(self, _: vu.Empty, __: Message) -> vu.Payload:
        return vu.U64(self.offered)

    def _set_features(self, payload: vu.U64, _: Message) -> Steps:
        extra = payload.value & ~self.offered
        if extra:
            raise ProtocolError(f"not offered: {virtio.names(Feature(extra))}")
        # QEMU repeats SET_FEATURES for each queue pair, when the rings of the earlier
        # pairs run already: the same features must not stop them.
        if payload.value != self.features:
            yield from self._quiesce(self._all_rings())
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
        """Do nothing: each connection is a session of its own."""

    def _reset_owner(self, _: vu.Empty, __: Message) -> None:
        """Do nothing, as the specification recommends."""

    def _reset_device(self, _: vu.Empty, __: Message) -> Steps:
        # QEMU does not send this: the protocol feature RESET_DEVICE is not offered.
        yield from self._quiesce(self._all_rings())
        for ring in self.rings:
            ring.reset()
            # The specification has all rings disabled after a reset.  None would mean
            # enabled, since no feature is acknowledged any more.
            ring.enable = False
        self.features, self.mtu = Feature(0), 0
        return None

    def _set_backend_req_fd(self, _: vu.Empty, message: Message) -> None:
        """Keep the channel open, although the daemon sends no requests on it."""
        # User Mode Linux needs this request to succeed.
        self._set_backend_channel(message.take())

    def _net_set_mtu(self, payload: vu.U64, _: Message) -> None:
        if not MIN_MTU <= payload.value <= MAX_MTU:
            raise ProtocolError(f"MTU {payload.value}, not {MIN_MTU} to {MAX_MTU}")
        self.mtu = payload.value

    def _send_rarp(self, _: vu.U64, __: Message) -> None:
        """Do nothing: the slave's bridge learns the MAC from the master's packets."""

    # Memory.

    def _set_mem_table(self, payload: vu.MemTable, message: Message) -> Steps:
        if len(message.fds) != len(payload.regions):
            raise ProtocolError(
                f"{len(message.fds)} descriptors for {len(payload.regions)} regions"
            )
        # Place every region before a ring is stopped: a refused table changes nothing.
        memory = MemoryMap()
        for region, fd in zip(payload.regions, message.fds, strict=True):
            memory = memory.add(self._windows.place(region, fd))
        yield from self._change_memory(memory)
        return None

    def _add_mem_reg(self, payload: vu.SingleRegion, message: Message) -> Steps:
        memory = self.memory.add(self._windows.place(payload.region, message.fds[0]))
        # QEMU 7.2 adds, and removes, each region once for each queue pair: only the
        # first time may stop rings.
        if memory != self.memory:
            yield from self._change_memory(memory)
        return None

    def _rem_mem_reg(self, payload: vu.SingleRegion, _: Message) -> Steps:
        memory = self.memory.remove(payload.region)
        if memory != self.memory:
            yield from self._change_memory(memory)
        return None

    def _change_memory(self, memory: MemoryMap) -> Wait:
        """Quiesce all rings, change the memory, and translate the addresses again."""
        yield from self._quiesce(self._all_rings())
        self.memory = memory
        for ring in self.rings:
            try:
                ring.translate(memory)
            except ProtocolError:
                # QEMU removes and adds regions one by one when the layout changes.  The
                # ring is not ready until its region is back.
                continue

    # Rings.

    def _set_vring_num(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        num = virtio.check_split_size(payload.num)
        if num != ring.size:
            yield from self._quiesce([payload.index])
            ring.size = num
            ring.translate(self.memory)
        return None

    def _set_vring_addr(self, payload: vu.VringAddr, _: Message) -> Steps:
        ring = self._ring(payload.index)
        if payload != ring.addr:
            yield from self._quiesce([payload.index])
            ring.addr = payload
            ring.translate(self.memory)
        return None

    def _set_vring_base(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        # The field has 32 bits, an index of a split ring 16.
        if payload.num >= 2**16:
            raise ProtocolError(f"base {payload.num} of a ring that counts to 65535")
        # First the quiesce, which sets the base to the used index.
        yield from self._quiesce([payload.index])
        ring.base = payload.num
        return None

    def _get_vring_base(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        # First the quiesce, which reads the used index: `stop` forgets where that is.
        yield from self._quiesce([payload.index])
        ring.stop()
        return vu.VringState(payload.index, ring.base)

    def _set_vring_kick(self, payload: vu.VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        # A new kick for a ready ring stops nothing: the agent has no kick, and the
        # device relays from the new one.  Without a descriptor, the ring is polled.
        ring.set_notifier("kick", _notifier(payload, message))
        if not ring.kicked:
            ring.kicked = True
            ring.translate(self.memory)

    def _set_vring_call(self, payload: vu.VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        # A call is no condition for a ring to be ready: QEMU sends it after the kick
        # (the one that it sends at connect is not the guest's interrupt), and a guest
        # that polls has none.
        ring.set_notifier("call", _notifier(payload, message))

    def _set_vring_err(self, payload: vu.VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        ring.set_notifier("err", _notifier(payload, message))

    def _set_vring_enable(self, payload: vu.VringState, _: Message) -> Steps:
        ring = self._ring(payload.index)
        if payload.num > 1:
            raise ProtocolError(f"enable {payload.num}, neither 0 nor 1")
        # Only a ring that was enabled has to stop.  QEMU also sends this request before
        # it has described any ring, with 0 and with 1.
        if not payload.num and self.enabled(payload.index):
            yield from self._quiesce([payload.index])
        ring.enable = bool(payload.num)
        return None


def _notifier(payload: vu.VringFd, message: Message) -> Notifier | None:
    """Take the notifier of a message; None if its flag says that there is none."""
    # `not nofd` counts as 1 or 0: the number of descriptors that belongs to the flag.
    if len(message.fds) != (not payload.nofd):
        raise ProtocolError(
            f"{len(message.fds)} descriptors and the flag for none "
            f"{'set' if payload.nofd else 'not set'}"
        )
    fd = message.take()
    if fd is None:
        return None
    # `adopt` leaves nothing to close, unless it refuses the descriptor.
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
