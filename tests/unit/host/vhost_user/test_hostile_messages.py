# SPDX-License-Identifier: Apache-2.0
"""Messages that made other vhost-user back-ends fail, sent to ours.

Each test names the CVE, the commit or the issue that its case comes from.
"""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

from tests.descriptors import open_descriptors
from tests.fakes.frontend import USER_BASE, Direct, FrontEnd, RingAt, region
from tests.fakes.windows import MIB, Ram
from vhostpci_host.fds import Fd
from vhostpci_host.vhost_user.backend import HANDLERS, Backend
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

RX = RingAt.nth(0)
REPEATS = 10_000

PAYLOADS: dict[Request, vu.Payload] = {
    Request.SET_FEATURES: vu.U64(0),
    Request.SET_PROTOCOL_FEATURES: vu.U64(0),
    Request.SET_MEM_TABLE: vu.MemTable((region(MIB),)),
    Request.ADD_MEM_REG: vu.SingleRegion(region(MIB)),
    Request.REM_MEM_REG: vu.SingleRegion(region(MIB)),
    Request.SET_VRING_NUM: vu.VringState(0, 256),
    Request.SET_VRING_ADDR: vu.VringAddr(0, 0, 0, 0, 0),
    Request.SET_VRING_BASE: vu.VringState(0, 0),
    Request.GET_VRING_BASE: vu.VringState(0, 0),
    Request.SET_VRING_KICK: vu.VringFd(0),
    Request.SET_VRING_CALL: vu.VringFd(0),
    Request.SET_VRING_ERR: vu.VringFd(0),
    Request.SET_VRING_ENABLE: vu.VringState(0, 1),
    Request.SEND_RARP: vu.U64(0),
    Request.NET_SET_MTU: vu.U64(1500),
}


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def message(request: Request, *fds: int) -> Message:
    ours = [Fd(os.dup(fd)) for fd in fds]
    return Message.of(request, PAYLOADS.get(request), *ours)


def receive(backend: Backend, one: Message) -> None:
    try:
        backend.receive(one)
    except ProtocolError:
        return
    while backend.waiting:
        backend.resume()


@pytest.mark.parametrize("request_", Request)
def test_eight_descriptors_on_any_message_are_closed(
    backend: Backend, fd: int, request_: Request
) -> None:
    """CVE-2019-14818, CVE-2022-0669: descriptors that no message has."""
    before = set(open_descriptors())
    with pytest.raises(ProtocolError):
        backend.receive(message(request_, *[fd] * 8))
    assert set(open_descriptors()) == before


@pytest.mark.parametrize("request_", HANDLERS)
def test_message_that_is_repeated_ten_thousand_times_leaks_nothing(
    backend: Backend, ram: Ram, fd: int, request_: Request
) -> None:
    """CVE-2019-14818, CVE-2020-10726: leaks by repetition."""
    shape = vu.SHAPES[request_]
    file = ram.fd if "MEM" in request_.name else fd
    fds = [file] * (1 if request_ is Request.SET_MEM_TABLE else shape.max_fds)
    for _ in range(10):
        receive(backend, message(request_, *fds))
    before = open_descriptors()
    for _ in range(REPEATS):
        receive(backend, message(request_, *fds))
    assert len(open_descriptors()) == len(before)


def test_ring_size_that_is_set_100_000_times_costs_no_memory(backend: Backend) -> None:
    """CVE-2019-14818: memory that each SET_VRING_NUM took again."""

    def resize(times: int) -> int:
        for turn in range(times):
            state = vu.VringState(0, 256 << turn % 2)
            receive(backend, Message.of(Request.SET_VRING_NUM, state))
        gc.collect()
        return sys.getallocatedblocks()

    before = resize(1000)
    # What the interpreter keeps for itself is a few blocks, whatever their number.
    assert resize(100_000) - before < 1000


@pytest.mark.parametrize("request_", sorted(set(Request) - set(HANDLERS)))
def test_descriptors_of_a_request_that_we_do_not_offer_are_closed_each_time(
    backend: Backend, fd: int, request_: Request
) -> None:
    """CVE-2020-10726, CVE-2022-0669: GET_INFLIGHT_FD, SET_INFLIGHT_FD and others."""
    before = open_descriptors()
    for turn in range(300):
        with pytest.raises(ProtocolError, match="a request that we don't offer"):
            backend.receive(message(request_, *[fd] * (turn % 9)))
    assert open_descriptors() == before


@pytest.mark.parametrize("index", [2, 255, 256, 0x10000, 0xFFFFFFFF], ids=hex)
@pytest.mark.parametrize(
    "request_",
    [
        Request.SET_VRING_NUM,
        Request.SET_VRING_BASE,
        Request.GET_VRING_BASE,
        Request.SET_VRING_ENABLE,
    ],
    ids=lambda request: request.name,
)
def test_vring_index_is_checked_before_it_is_cut(
    backend: Backend, request_: Request, index: int
) -> None:
    """CVE-2020-10723, rust-vmm #212: 0x10000 must not become 0, nor panic."""
    with pytest.raises(ProtocolError, match=f"vring {index}; there are 2"):
        backend.receive(Message.of(request_, vu.VringState(index, 1)))


@pytest.mark.parametrize("index", [2, 0xFFFF, 0xFFFFFFFF], ids=hex)
def test_vring_index_of_an_address_is_checked(backend: Backend, index: int) -> None:
    payload = vu.VringAddr(index, 0, 0, 0, 0)
    with pytest.raises(ProtocolError, match="vring"):
        backend.receive(Message.of(Request.SET_VRING_ADDR, payload))


@pytest.mark.parametrize("value", [2, 0xFF, 0x102, 0x10000, 0x1FF, 2**63], ids=hex)
@pytest.mark.parametrize(
    "request_",
    [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR],
    ids=lambda request: request.name,
)
def test_vring_index_of_a_notifier_is_checked(
    backend: Backend, fd: int, request_: Request, value: int
) -> None:
    with pytest.raises(ProtocolError):
        backend.receive(Message.of(request_, vu.U64(value), Fd(os.dup(fd))))


@pytest.mark.parametrize("nofd", [False, True])
def test_notifier_flag_and_descriptor_must_agree(
    backend: Backend, fd: int, nofd: bool
) -> None:
    fds = [Fd(os.dup(fd))] if nofd else []
    with pytest.raises(ProtocolError, match="flag for none"):
        backend.receive(Message.of(Request.SET_VRING_KICK, vu.VringFd(0, nofd), *fds))


@pytest.mark.parametrize(
    ("request_", "end"),
    [
        (Request.SET_VRING_KICK, "write"),
        (Request.SET_VRING_CALL, "read"),
        (Request.SET_VRING_ERR, "read"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_end_of_a_pipe_that_does_not_serve_is_refused(
    backend: Backend, request_: Request, end: str
) -> None:
    read, write = os.pipe()
    useless, other = (read, write) if end == "read" else (write, read)
    message = Message.of(request_, vu.VringFd(0), Fd(useless))
    with pytest.raises(ProtocolError, match="nothing can"):
        backend.receive(message)
    os.close(other)


def test_notifier_that_would_end_the_slaves_qemu_is_refused(
    backend: Backend, ram: Ram
) -> None:
    """KVM takes eventfds only, and QEMU aborts on its refusal."""
    with pytest.raises(ProtocolError, match="no eventfd, no pipe"):
        backend.receive(
            Message.of(Request.SET_VRING_CALL, vu.VringFd(0), Fd(os.dup(ram.fd)))
        )


@pytest.mark.parametrize(
    "bad",
    [
        vu.MemRegion(0, 2**64 - 1, 2, 2),
        vu.MemRegion(2**64 - 1, 2, 0, 0),
        vu.MemRegion(0, 2, 2**64 - 1, 0),
        vu.MemRegion(0, 2, 0, 2**64 - 1),
        vu.MemRegion(0, 0, 0, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "request_",
    [Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG],
    ids=lambda request: request.name,
)
def test_region_that_overflows_64_bits_is_refused(
    backend: Backend, ram: Ram, request_: Request, bad: vu.MemRegion
) -> None:
    """CVE-2020-10722, in every message that has a region."""
    table = request_ is Request.SET_MEM_TABLE
    payload = vu.MemTable((bad,)) if table else vu.SingleRegion(bad)
    with pytest.raises(ProtocolError, match="wraps"):
        backend.receive(Message.of(request_, payload, Fd(os.dup(ram.fd))))


@pytest.mark.parametrize("count", [0, 2])
def test_table_with_more_or_fewer_descriptors_than_regions_is_refused(
    backend: Backend, ram: Ram, count: int
) -> None:
    """CVE-2021-3839: a count of the peer's against an array of ours."""
    fds = [Fd(os.dup(ram.fd)) for _ in range(count)]
    with pytest.raises(ProtocolError, match="descriptors for 1 regions"):
        backend.receive(
            Message.of(Request.SET_MEM_TABLE, vu.MemTable((region(MIB),)), *fds)
        )


@pytest.mark.parametrize("space", ["guest_addr", "user_addr"])
def test_regions_that_overlap_are_refused(
    backend: Backend, ram: Ram, space: str
) -> None:
    far = {"guest_addr": 4 * MIB, "user_addr": USER_BASE + 4 * MIB}
    near = {"guest_addr": MIB - 1, "user_addr": USER_BASE + MIB - 1}
    place = far | {space: near[space]}
    other = vu.MemRegion(place["guest_addr"], MIB, place["user_addr"], 0)
    fds = [Fd(os.dup(ram.fd)) for _ in range(2)]
    table = vu.MemTable((region(MIB), other))
    with pytest.raises(ProtocolError, match="overlaps"):
        backend.receive(Message.of(Request.SET_MEM_TABLE, table, *fds))


def test_table_of_regions_is_bounded(backend: Backend, ram: Ram) -> None:
    for number in range(256):
        one = region(0x1000, guest_addr=number * 0x1000, offset=0)
        add = Message.of(Request.ADD_MEM_REG, vu.SingleRegion(one), Fd(os.dup(ram.fd)))
        backend.receive(add)
    one = region(0x1000, guest_addr=MIB)
    with pytest.raises(ProtocolError, match="more than 256"):
        backend.receive(
            Message.of(Request.ADD_MEM_REG, vu.SingleRegion(one), Fd(os.dup(ram.fd)))
        )


def areas_at(end: int) -> list[RingAt]:
    """Rings of 256 one of whose areas ends one byte past `end`."""
    desc, avail, used = 16 * 256, 6 + 2 * 256, 6 + 8 * 256
    return [
        RingAt(0, desc=(end - desc) // 16 * 16 + 16),
        RingAt(0, avail=(end - avail) // 2 * 2 + 2),
        RingAt(0, used=(end - used) // 4 * 4 + 4),
    ]


@pytest.mark.parametrize("case", range(3), ids=["desc", "avail", "used"])
@pytest.mark.parametrize("layout", ["end", "hole", "two regions"])
def test_ring_that_crosses_the_end_of_its_region_is_refused(
    ram: Ram, backend: Backend, layout: str, case: int
) -> None:
    """CVE-2018-1059: the whole range has to be in one region."""
    second = {
        "end": [],
        "hole": [region(MIB, guest_addr=2 * MIB, offset=2 * MIB)],
        "two regions": [region(MIB, guest_addr=MIB, offset=MIB)],
    }[layout]
    regions = [(one, ram.fd) for one in (region(MIB), *second)]
    direct = Direct(backend)
    with FrontEnd(direct, regions) as qemu:
        qemu.connect()
        with direct.refuses("in none of the"):
            qemu.driver_ok([areas_at(MIB)[case]])
        assert not backend.setup.runs(0)


@pytest.mark.parametrize("addr", [0, USER_BASE - 1, 2**64 - 1, 2**64 - 16], ids=hex)
def test_ring_address_that_wraps_or_is_nowhere_is_refused(
    qemu: FrontEnd, addr: int
) -> None:
    qemu.set_memory()
    qemu.send(Request.SET_VRING_NUM, vu.VringState(0, 256))
    qemu.send(Request.SET_VRING_ADDR, vu.VringAddr(0, 0, addr, addr, addr))
    assert isinstance(qemu.transport, Direct)
    with qemu.transport.refuses("in none of the"):
        qemu._new_kick(0)
    assert qemu.stop_ring(0) == 0  # the front-end goes on


def test_ring_that_grows_out_of_its_region_is_refused(
    ram: Ram, backend: Backend
) -> None:
    """The size may come after the addresses: both are checked together."""
    direct = Direct(backend)
    with FrontEnd(direct, [(region(0x20000), ram.fd)]) as qemu:
        qemu.connect()
        qemu.driver_ok([RingAt(0)])
        with direct.refuses("in none of the"):
            qemu.send(Request.SET_VRING_NUM, vu.VringState(0, 32768))
        assert not backend.setup.runs(0)


@pytest.mark.parametrize("num", [0, 3, 65536, 2**31, 2**32 - 1])
def test_impossible_ring_size_is_refused(backend: Backend, num: int) -> None:
    with pytest.raises(ProtocolError, match="ring size"):
        backend.receive(Message.of(Request.SET_VRING_NUM, vu.VringState(0, num)))


@pytest.mark.parametrize("base", [65536, 2**32 - 1])
def test_base_beyond_16_bits_is_refused(backend: Backend, base: int) -> None:
    with pytest.raises(ProtocolError, match="base"):
        backend.receive(Message.of(Request.SET_VRING_BASE, vu.VringState(0, base)))


@pytest.mark.parametrize("num", [2, 2**32 - 1])
def test_enable_that_is_neither_0_nor_1_is_refused(backend: Backend, num: int) -> None:
    with pytest.raises(ProtocolError, match=f"enable {num}, neither 0 nor 1"):
        backend.receive(Message.of(Request.SET_VRING_ENABLE, vu.VringState(0, num)))


def test_stopped_ring_has_no_address_left(qemu: FrontEnd, backend: Backend) -> None:
    """DPDK 1846fe767f: stale addresses after GET_VRING_BASE."""
    qemu.driver_ok([RX])
    qemu.stop_ring(0)
    assert backend.setup.rings[0].areas is None
    qemu.set_memory()
    assert backend.setup.rings[0].areas is None


def test_stop_of_a_ring_that_never_ran_answers_its_base(
    qemu: FrontEnd, backend: Backend
) -> None:
    assert qemu.stop_ring(1) == 0
    qemu.send(Request.SET_VRING_BASE, vu.VringState(1, 99))
    assert [qemu.stop_ring(1), qemu.stop_ring(1)] == [99, 99]


def test_stop_and_start_storm_leaves_the_ring_in_order(
    qemu: FrontEnd, backend: Backend, ram: Ram
) -> None:
    """DPDK 73ea44370d, 21d9fb6bad: use after free by restarts."""
    for turn in range(300):
        qemu.driver_ok([RingAt.nth(0, base=turn)])
        backend.setup.find_position(0)  # the device starts it
        ram.use(RX.used, turn + 1)
        if turn % 3:
            assert qemu.stop_ring(0) == turn + 1
    assert len(open_descriptors()) < 100


@pytest.mark.parametrize("request_", sorted(set(Request) - set(HANDLERS)))
def test_request_that_we_do_not_offer_is_refused_by_name(
    backend: Backend, request_: Request
) -> None:
    with pytest.raises(
        ProtocolError, match=f"{request_.name}: a request that we don't"
    ):
        backend.receive(Message.of(request_))


@pytest.mark.parametrize("number", [0, 44, 2**32 - 1])
def test_unknown_request_is_refused(backend: Backend, number: int) -> None:
    one = Message(vu.Header(number, vu.VERSION, 0))
    with pytest.raises(ProtocolError, match=f"request {number}"):
        backend.receive(one)


@pytest.mark.parametrize("length", [0, 1, 7, 9, 300])
@pytest.mark.parametrize("request_", HANDLERS)
def test_payload_of_another_length_is_refused(
    backend: Backend, request_: Request, length: int
) -> None:
    """CVE-2020-10724: lengths that the peer chose."""
    fits = length == 0 and vu.SHAPES[request_].payload is vu.Empty
    one = Message(vu.Header(request_, vu.VERSION, length), bytes(length))
    if fits and not vu.SHAPES[request_].min_fds:
        backend.receive(one)
        return
    with pytest.raises(ProtocolError):
        backend.receive(one)
