# SPDX-License-Identifier: Apache-2.0
"""Whole vhost-user sessions with the back-end, without a socket."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

from tests.fakes.frontend import (
    USER_BASE,
    Direct,
    FrontEnd,
    Refused,
    RingAt,
    region,
)
from tests.fakes.windows import MIB, Ram
from vhostpci_host.vhost_user import negotiation
from vhostpci_host.vhost_user.backend import Answer, Backend
from vhostpci_host.vhost_user.front_end_setup import Quiesce
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

RX, TX = RingAt.nth(0), RingAt.nth(1)


@contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def start(backend: Backend) -> None:
    """Start all rings, as the device does when the front-end has set them up."""
    for index in range(len(backend.setup.rings)):
        assert backend.setup.find_position(index) == ""


def test_qemu_session_from_connect_to_stop(
    qemu: FrontEnd, backend: Backend, ram: Ram
) -> None:
    qemu.driver_ok([RX, TX])
    assert [backend.setup.runs(0), backend.setup.runs(1)] == [True, True]
    start(backend)
    ram.use(TX.used, 17)
    assert [qemu.stop_ring(0), qemu.stop_ring(1)] == [0, 17]
    assert [backend.setup.runs(0), backend.setup.runs(1)] == [False, False]


def test_ring_of_a_reloaded_driver_starts_at_the_index_where_it_stopped(
    qemu: FrontEnd, backend: Backend, ram: Ram
) -> None:
    for base in (0, 65535, 3):
        qemu.driver_ok([RingAt.nth(0, base=base)])
        assert backend.setup.rings[0].base == base
        start(backend)
        ram.use(RX.used, (base + 5) % 2**16)
        assert qemu.stop_ring(0) == (base + 5) % 2**16


@pytest.mark.parametrize(
    "change",
    [
        lambda qemu: qemu.send(
            Request.SET_VRING_ADDR, qemu.address(replace(RX, desc=0x50000))
        ),
        lambda qemu: qemu.send(Request.SET_VRING_NUM, vu.VringState(0, 128)),
        lambda qemu: qemu.send(Request.SET_FEATURES, vu.U64(Feature.F_VERSION_1)),
        lambda qemu: qemu.stop_ring(0),
    ],
    ids=["moved", "resized", "features", "stopped"],
)
def test_base_holds_until_the_ring_has_run(
    qemu: FrontEnd, backend: Backend, ram: Ram, change: Callable[[FrontEnd], object]
) -> None:
    """As User Mode Linux does it with a driver that is loaded again: it stops none.

    The used index is then that of the old ring, whose memory may have another use now.
    """
    qemu.driver_ok([RX])
    start(backend)
    ram.use(RX.used, 321)
    qemu.send(Request.SET_VRING_BASE, vu.VringState(0, 7))
    change(qemu)
    assert backend.setup.rings[0].base == 7


def test_offer_is_what_the_ring_driver_can_do() -> None:
    offered = negotiation.offered(queue_pairs=1)
    assert Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF in offered
    assert Feature.F_ACCESS_PLATFORM not in offered
    assert Feature.NET_F_MQ not in offered
    # With LOG_SHMFD, QEMU would migrate a master, and nothing logs what we write.
    assert not negotiation.PROTOCOL_FEATURES & (
        ProtocolFeature.LOG_SHMFD
        | ProtocolFeature.INFLIGHT_SHMFD
        | ProtocolFeature.RESET_DEVICE
    )


def test_multiqueue_is_offered_with_several_pairs(ram: Ram) -> None:
    backend = Backend(4, ram)
    assert Feature.NET_F_MQ in negotiation.offered(queue_pairs=4)
    with FrontEnd(Direct(backend), [], 4) as qemu:
        qemu.connect()
        assert vu.U64.parse(qemu.ask(Request.GET_QUEUE_NUM)).value == 4


def test_card_of_a_confined_master_is_offered_access_platform(ram: Ram) -> None:
    """Whatever the data plane serves: else its QEMU would not start."""
    for confined in (False, True):
        nothing = lambda: Feature(0)  # noqa: E731
        backend = Backend(1, ram, offer=nothing, confined=confined)
        with FrontEnd(Direct(backend), []) as qemu:
            given = vu.U64.parse(qemu.ask(Request.GET_FEATURES)).value
        assert given == (Feature.F_ACCESS_PLATFORM if confined else 0)


def test_message_that_changes_nothing_does_not_quiesce_the_ring(
    ram: Ram, backend: Backend
) -> None:
    quiesced: list[frozenset[int]] = []
    with FrontEnd(
        Direct(backend, quiesced.append), [(region(ram.size), ram.fd)]
    ) as qemu:
        qemu.connect()
        qemu.driver_ok([RX, TX])
        qemu.enable()
        qemu.send(Request.SET_FEATURES, vu.U64(qemu.features))
        qemu.send(Request.SET_VRING_NUM, vu.VringState(0, RX.size))
        qemu.send(Request.SET_VRING_ADDR, qemu.address(RX))
        qemu.send(Request.SET_OWNER)
        qemu.send(Request.RESET_OWNER)
    assert quiesced == []


@pytest.mark.parametrize(
    ("request_", "payload", "rings"),
    [
        (Request.GET_VRING_BASE, vu.VringState(1, 0), {1}),
        (Request.SET_FEATURES, vu.U64(Feature.F_VERSION_1), {0, 1}),
        (Request.SET_VRING_NUM, vu.VringState(0, 128), {0}),
        (Request.SET_VRING_ADDR, vu.VringAddr(0, 0, *[USER_BASE + 0x50000] * 3), {0}),
        (Request.SET_VRING_BASE, vu.VringState(1, 9), {1}),
        (Request.RESET_DEVICE, None, {0, 1}),
        (Request.REM_MEM_REG, vu.SingleRegion(region(16 * MIB)), {0, 1}),
    ],
    ids=lambda value: value.name if isinstance(value, Request) else None,
)
def test_change_of_a_ready_ring_waits_until_the_ring_is_quiesced(
    qemu: FrontEnd,
    backend: Backend,
    request_: Request,
    payload: vu.Payload | None,
    rings: set[int],
) -> None:
    qemu.driver_ok([RX, TX])

    def described() -> list[tuple[object, ...]]:
        rings = backend.setup.rings
        return [(r.size, r.base, r.addr, r.kicked, r.enable) for r in rings]

    before = described()
    outcome = backend.receive(Message.of(request_, payload))
    assert outcome == Quiesce(frozenset(rings))
    assert backend.waiting
    assert described() == before
    assert isinstance(backend.resume(), Answer)
    assert not backend.waiting


def test_index_is_read_after_the_agent_has_stopped_the_ring(
    ram: Ram, backend: Backend, qemu: FrontEnd
) -> None:
    qemu.driver_ok([RX])
    start(backend)
    request = Message.of(Request.GET_VRING_BASE, vu.VringState(0, 0))
    assert isinstance(backend.receive(request), Quiesce)
    ram.use(RX.used, 42)  # the agent's last packets
    answer = backend.resume()
    assert answer == Answer(vu.reply(Request.GET_VRING_BASE, vu.VringState(0, 42)))


def test_front_end_that_disconnects_during_a_quiesce_leaves_nothing_waiting(
    qemu: FrontEnd, backend: Backend
) -> None:
    qemu.driver_ok([RX, TX])
    table = vu.MemTable(())
    assert isinstance(
        backend.receive(Message.of(Request.SET_MEM_TABLE, table)), Quiesce
    )
    backend.close()
    assert not backend.waiting


@pytest.mark.parametrize(
    "order",
    [
        "enable features memory num base addr kick call",  # QEMU
        "features memory num base addr call kick enable",  # cloud-hypervisor
        "features memory call num base addr kick enable",  # DPDK
        "kick addr num enable memory features",  # no known front-end
        "memory enable kick call base addr num features",  # no known front-end
    ],
)
def test_ring_runs_once_it_is_described_in_any_order(
    qemu: FrontEnd, backend: Backend, order: str
) -> None:
    steps: dict[str, Callable[[], None]] = {
        "enable": qemu.enable,
        "features": lambda: qemu.send(Request.SET_FEATURES, vu.U64(qemu.features)),
        "memory": qemu.set_memory,
        "num": lambda: qemu.send(Request.SET_VRING_NUM, vu.VringState(0, RX.size)),
        "base": lambda: qemu.send(Request.SET_VRING_BASE, vu.VringState(0, 0)),
        "addr": lambda: qemu.send(Request.SET_VRING_ADDR, qemu.address(RX)),
        "kick": lambda: qemu._new_kick(0),
        "call": lambda: qemu._new_call(0),
    }
    backend.setup.rings[0].enable = None  # this front-end has not said so yet
    names = order.split()
    qemu.send(Request.SET_FEATURES, vu.U64(Feature.F_PROTOCOL_FEATURES))
    for name in names[:-1]:
        steps[name]()
    # The call is no condition, since a guest that polls has none; features came before.
    assert backend.setup.runs(0) == (names[-1] in ("call", "features"))
    steps[names[-1]]()
    assert backend.setup.runs(0)
    assert not backend.setup.runs(1)


def test_ring_without_protocol_features_starts_enabled(
    ram: Ram, backend: Backend
) -> None:
    with FrontEnd(Direct(backend), [(region(ram.size), ram.fd)]) as old:
        old.features = Feature.F_VERSION_1
        old.driver_ok([RX])
        assert backend.setup.runs(0)


def test_ring_is_polled_where_there_is_no_descriptor(
    qemu: FrontEnd, backend: Backend
) -> None:
    qemu.driver_ok([RX])
    qemu.send(Request.SET_VRING_KICK, vu.VringFd(0, nofd=True))
    qemu.send(Request.SET_VRING_CALL, vu.VringFd(0, nofd=True))
    assert backend.setup.runs(0)
    assert backend.setup.rings[0].kick is None
    assert backend.setup.rings[0].call is None


def test_ring_whose_first_kick_has_no_descriptor_runs_polled(
    qemu: FrontEnd, backend: Backend
) -> None:
    qemu.driver_ok([])
    qemu.send(Request.SET_VRING_NUM, vu.VringState(0, RX.size))
    qemu.send(Request.SET_VRING_ADDR, qemu.address(RX))
    assert not backend.setup.runs(0)
    qemu.send(Request.SET_VRING_KICK, vu.VringFd(0, nofd=True))
    assert backend.setup.runs(0)
    assert backend.setup.rings[0].kick is None


@contextmanager
def quiesced_session(
    ram: Ram, backend: Backend
) -> Iterator[tuple[FrontEnd, list[frozenset[int]]]]:
    """Both rings run; return the front-end, and what is quiesced from then on."""
    quiesced: list[frozenset[int]] = []
    memory = [(region(ram.size), ram.fd)]
    with FrontEnd(Direct(backend, quiesced.append), memory) as front_end:
        front_end.connect()
        front_end.driver_ok([RX, TX])
        start(backend)
        yield front_end, quiesced


def test_rings_that_are_disabled_are_quiesced_before_the_next_other_request(
    ram: Ram, backend: Backend
) -> None:
    """User Mode Linux sends GET_FEATURES, and then frees the rings' memory."""
    with quiesced_session(ram, backend) as (uml, quiesced):
        for index in (0, 1, 1):
            uml.send(Request.SET_VRING_ENABLE, vu.VringState(index, 0))
        assert quiesced == []
        ram.use(TX.used, 17)
        uml.ask(Request.GET_FEATURES)
        assert quiesced == [{0, 1}]
        assert [ring.base for ring in backend.setup.rings] == [0, 17]
        uml.ask(Request.GET_FEATURES)
        assert quiesced == [{0, 1}]


def test_ring_that_is_enabled_again_is_not_quiesced(ram: Ram, backend: Backend) -> None:
    with quiesced_session(ram, backend) as (qemu, quiesced):
        for enable in (0, 1):
            qemu.send(Request.SET_VRING_ENABLE, vu.VringState(0, enable))
        qemu.ask(Request.GET_FEATURES)
    assert quiesced == []


def test_user_mode_linux_is_answered_from_the_negotiation_on(
    ram: Ram, backend: Backend
) -> None:
    """It wants a reply already to the request that negotiates replies."""
    with FrontEnd(
        Direct(backend), [(region(ram.size), ram.fd)], need_reply=True
    ) as uml:
        uml.connect()
        left, right = os.pipe()
        try:
            uml.send(Request.SET_BACKEND_REQ_FD, None, left)
            uml.driver_ok([RX, TX])
            uml.send(Request.SET_VRING_CALL, vu.VringFd(0), right)
        finally:
            os.close(left)
            os.close(right)
        assert backend.setup.runs(0)


def test_possible_mtu_is_accepted_and_any_other_refused(
    qemu: FrontEnd, backend: Backend
) -> None:
    qemu.send(Request.NET_SET_MTU, vu.U64(9000), need_reply=True)
    assert backend.setup.mtu == 9000
    for mtu in (68, 65535, 9000):
        qemu.send(Request.NET_SET_MTU, vu.U64(mtu), need_reply=True)
        assert backend.setup.mtu == mtu
    for mtu in (0, 67, 65536, 2**64 - 1):
        with pytest.raises(Refused):
            qemu.send(Request.NET_SET_MTU, vu.U64(mtu), need_reply=True)
    assert backend.setup.mtu == 9000


def test_rarp_is_accepted(qemu: FrontEnd) -> None:
    qemu.send(Request.SEND_RARP, vu.U64(0x123456), need_reply=True)


def test_reset_forgets_rings_and_keeps_memory(qemu: FrontEnd, backend: Backend) -> None:
    qemu.driver_ok([RX])
    qemu.send(Request.NET_SET_MTU, vu.U64(9000))
    qemu.send(Request.RESET_DEVICE)
    assert (backend.setup.features, backend.setup.mtu) == (0, 0)
    assert not backend.setup.rings[0].kicked
    assert not backend.setup.enabled(0)
    assert len(backend.setup.memory.regions) == 1


def test_refusal_is_answered_if_the_front_end_asked_for_a_reply(
    qemu: FrontEnd, backend: Backend
) -> None:
    transport = qemu.transport
    assert isinstance(transport, Direct)
    with pytest.raises(Refused):
        qemu.send(Request.SET_VRING_NUM, vu.VringState(0, 3), need_reply=True)
    assert transport.refusals == [
        "SET_VRING_NUM: ring size 3, not a power of two from 1 to 32768"
    ]


def test_refusal_without_a_reply_ends_the_session(qemu: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="SET_VRING_NUM: ring size 3"):
        qemu.send(Request.SET_VRING_NUM, vu.VringState(0, 3))


def test_feature_that_was_not_offered_is_refused_by_name(qemu: FrontEnd) -> None:
    extra = qemu.features | Feature.F_RING_RESET
    with pytest.raises(ProtocolError, match="F_RING_RESET"):
        qemu.send(Request.SET_FEATURES, vu.U64(extra))
    with pytest.raises(ProtocolError, match="INFLIGHT_SHMFD"):
        qemu.send(Request.SET_PROTOCOL_FEATURES, vu.U64(ProtocolFeature.INFLIGHT_SHMFD))


@pytest.mark.parametrize(
    ("name", "offset"), [("desc", 8), ("avail", 1), ("used", 2)], ids=str
)
def test_misaligned_area_is_refused(qemu: FrontEnd, name: str, offset: int) -> None:
    qemu.driver_ok([])
    moved = {name: getattr(RX, name) + offset}
    areas = {"desc": RX.desc, "avail": RX.avail, "used": RX.used} | moved
    qemu.send(Request.SET_VRING_NUM, vu.VringState(0, 256))
    qemu.send(Request.SET_VRING_ADDR, qemu.address(RingAt(0, **areas)))
    assert isinstance(qemu.transport, Direct)
    with qemu.transport.refuses("aligned"):
        qemu._new_kick(0)


@pytest.mark.parametrize(
    ("guest_addr", "user_addr", "runs"),
    [(8, USER_BASE, False), (0, USER_BASE + 8, True)],
)
def test_alignment_is_that_of_the_guests_address(
    ram: Ram, backend: Backend, guest_addr: int, user_addr: int, *, runs: bool
) -> None:
    """VIRTIO knows no other; what QEMU has its memory at is no concern of the guest."""
    memory = [(vu.MemRegion(guest_addr, MIB, user_addr, 0), ram.fd)]
    direct = Direct(backend)
    with FrontEnd(direct, memory) as qemu:
        qemu.connect()
        qemu.user_base = user_addr
        with nullcontext() if runs else direct.refuses("aligned"):
            qemu.driver_ok([RX])
        assert backend.setup.runs(0) == runs


@pytest.mark.parametrize("index", range(2))
def test_err_descriptor_replaces_the_one_before(
    qemu: FrontEnd, backend: Backend, index: int
) -> None:
    with eventfd() as first, eventfd() as second:
        for fd in (first, second):
            qemu.send(Request.SET_VRING_ERR, vu.VringFd(index), fd)
        assert backend.setup.rings[index].err is not None


def test_refused_request_that_always_has_a_reply_ends_the_session(
    qemu: FrontEnd,
) -> None:
    """QEMU would read an error code in reply to GET_VRING_BASE as the base."""
    data = vu.message(
        Request.GET_VRING_BASE, vu.VringState(9, 0), vu.HeaderFlag.NEED_REPLY
    )
    with pytest.raises(ProtocolError, match="vring 9"):
        qemu.transport.send(data, ())


def test_request_that_always_has_a_reply_gets_one_despite_need_reply(
    qemu: FrontEnd,
) -> None:
    data = vu.message(Request.GET_FEATURES, flags=vu.HeaderFlag.NEED_REPLY)
    qemu.transport.send(data, ())
    assert len(qemu.transport.receive()) == 20
