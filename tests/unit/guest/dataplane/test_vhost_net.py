# SPDX-License-Identifier: Apache-2.0
"""The data plane of the kernel, with a fake kernel: what it is told, and when not."""

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.fakes.driver import Driver, Machine
from tests.fakes.pair import CAN_CONFINE
from tests.fakes.vhost import FEATURES, FakeVhost
from tests.waiting import eventually, is_readable
from vhostpci_guest.dataplane.interface import MemRegion, RingConf, RingRefused
from vhostpci_guest.dataplane.vhost_net import Counters, VhostNetPlane
from vhostpci_guest.interfaces import Doorbell, Eventfd
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.virtio import Feature

RX, TX = 0, 1
TAP = 1000
"""Descriptor of the first queue; the fake kernel does not use it."""
SESSION = 7


class Bench:
    """A data plane between a fake master and a fake kernel."""

    def __init__(
        self,
        pairs: int = 1,
        *,
        takes_uso: bool = True,
        counters: Counters | None = (0,) * 16,
    ) -> None:
        self.machine = Machine(num=8)
        self.kernels: list[FakeVhost] = []
        self.counters = counters
        self.session = ctypes.c_uint64(SESSION)
        self.register = ctypes.c_uint32()
        self.memory = self.machine.memory.table()
        self.plane = VhostNetPlane(
            range(TAP, TAP + pairs),
            "web",
            open_node=lambda: os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
            counters=lambda: self.counters,
            takes_uso=takes_uso,
            confine=CAN_CONFINE,
            make_kernel=self._make_kernel,
        )
        self.plane.set_memory(self.memory)

    def _make_kernel(self, fd: int) -> FakeVhost:
        self.kernels.append(FakeVhost(fd))
        return self.kernels[-1]

    @property
    def kernel(self) -> FakeVhost:
        return self.kernels[0]

    def driver(self, index: int) -> Driver:
        return self.machine.tx if index % 2 else self.machine.rx

    def conf(self, index: int, **changes: object) -> RingConf:
        driver = self.driver(index)
        conf = RingConf(
            desc=driver.desc,
            driver=driver.avail,
            device=driver.used,
            size=driver.num,
            base=0,
            hdr_len=12,
            max_packet=1500,
            kick_fd=driver.kick_fd,
            meta_addr=ctypes.addressof(self.session),
            session=SESSION,
        )
        return replace(conf, **changes)  # type: ignore[arg-type]

    def start(self, index: int = TX, **changes: object) -> None:
        self.plane.start(index, self.conf(index, **changes))

    def complete(self, index: int, used: int) -> None:
        """Have the kernel complete chains up to a used index."""
        driver = self.driver(index)
        driver.memory.store(driver.used + 2, 2, used)
        self.kernels[index // 2].taken[index % 2] = used

    def state(self, index: int = TX) -> AgentRingState:
        return self.plane.status(index).state

    def close(self) -> None:
        self.plane.close()
        assert all(kernel.closed for kernel in self.kernels)
        self.machine.__exit__(None, None, None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def two_pairs() -> Iterator[Bench]:
    bench = Bench(pairs=2)
    yield bench
    bench.close()


def test_kernel_has_the_rings_where_they_are_mapped(bench: Bench) -> None:
    bench.start(TX)
    driver, memory = bench.driver(TX), bench.machine.memory
    assert bench.kernel.memory == tuple(bench.memory)
    assert bench.kernel.addresses[1] == tuple(
        map(memory.host_addr, (driver.desc, driver.avail, driver.used))
    )
    assert bench.kernel.taps == {1: TAP}
    assert bench.state() is AgentRingState.RUNNING


def test_each_queue_pair_has_a_kernels_thread_and_a_queue(two_pairs: Bench) -> None:
    for index in range(4):
        two_pairs.start(index)
    assert [kernel.taps for kernel in two_pairs.kernels] == [
        {0: TAP, 1: TAP},
        {0: TAP + 1, 1: TAP + 1},
    ]


def test_kernel_waits_at_the_vector_itself_and_is_told_to_look(bench: Bench) -> None:
    bench.start(TX)
    kick = bench.driver(TX).kick_fd
    assert bench.kernel.signals[1]["kick"] == kick
    assert os.eventfd_read(kick) == 1


def test_call_of_the_kernel_rings_the_doorbell(bench: Bench) -> None:
    doorbell = Doorbell(ctypes.addressof(bench.register), 2, 1)
    bench.start(TX, call=doorbell)
    bench.kernel.signal(1, "call")
    assert eventually(lambda: bench.register.value == doorbell.value)
    assert eventually(lambda: bench.plane.status(TX).stats.calls == 1)


def test_kernel_has_a_call_that_is_an_eventfd_itself(bench: Bench) -> None:
    call = Eventfd(os.dup(bench.driver(TX).call_fd))
    bench.start(TX, call=call)
    assert bench.kernel.signals[1]["call"] == call.fd
    assert bench.plane.summary()["not_counted"] == ["kicks", "drops", "calls"]
    bench.plane.stop(TX)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(call.fd)


def test_ring_without_interrupts_has_a_kick_that_we_signal(bench: Bench) -> None:
    bench.start(TX, kick_fd=None)
    kick = bench.kernel.signals[1]["kick"]
    assert kick is not None
    os.eventfd_read(kick)
    bench.driver(TX).send(b"packet")
    assert is_readable(kick, 5)


def test_stop_says_where_the_kernel_stands(bench: Bench) -> None:
    bench.start(TX)
    bench.complete(TX, 3)
    assert bench.plane.status(TX).index == 3
    assert bench.plane.stop(TX) == 3
    assert bench.kernel.taps == {}
    assert bench.kernel.signals[1] == {"kick": None, "call": None, "error": None}
    assert bench.state() is AgentRingState.STOPPED


def test_stop_does_not_take_over_the_index_of_another_back_end(bench: Bench) -> None:
    """The next start then finds that the used index is not the base."""
    bench.start(TX)
    bench.complete(TX, 3)
    driver = bench.driver(TX)
    driver.memory.store(driver.used + 2, 2, 9)
    assert bench.plane.stop(TX) == 3


def test_ring_starts_again_after_a_stop(bench: Bench) -> None:
    bench.start(TX)
    bench.complete(TX, 5)
    bench.start(TX, base=bench.plane.stop(TX))
    assert bench.kernel.taken[1] == 5
    assert bench.state() is AgentRingState.RUNNING


def test_error_in_a_ring_ends_that_ring_alone(two_pairs: Bench) -> None:
    two_pairs.start(1)
    two_pairs.start(3)
    two_pairs.kernels[1].signal(1, "error")
    assert is_readable(two_pairs.plane.fileno(), 5)
    assert two_pairs.plane.look()
    status = two_pairs.plane.status(3)
    assert status.state is AgentRingState.BROKEN
    assert "reload that driver" in status.reason
    assert two_pairs.kernels[1].taps == {}
    assert two_pairs.state(1) is AgentRingState.RUNNING
    assert not two_pairs.plane.look()
    two_pairs.plane.stop(3)
    assert two_pairs.state(3) is AgentRingState.BROKEN


def test_ring_whose_session_is_over_is_fenced_at_the_next_tick(bench: Bench) -> None:
    bench.start(TX)
    bench.plane.tick()
    assert not bench.plane.look()
    bench.session.value = SESSION + 1
    bench.plane.tick()
    assert is_readable(bench.plane.fileno(), 0)
    assert bench.plane.look()
    assert not bench.plane.look()
    assert bench.state() is AgentRingState.FENCED
    assert bench.kernel.taps == {}


def test_ring_of_an_earlier_session_does_not_start(bench: Bench) -> None:
    bench.session.value = SESSION + 1
    with pytest.raises(RingRefused) as refused:
        bench.start(TX)
    assert refused.value.state is AgentRingState.FENCED
    assert bench.kernel.taps == {}


@pytest.mark.parametrize("part", ["desc", "driver", "device"])
@pytest.mark.parametrize("at", ["start", "end"])
def test_ring_that_is_not_wholly_in_the_memory_is_refused(
    bench: Bench, part: str, at: str
) -> None:
    region = bench.memory[-1]
    end = region.guest_addr + region.size
    address = region.guest_addr - 4 if at == "start" else end - 4
    with pytest.raises(RingRefused, match="one memory region"):
        bench.start(TX, **{part: address})
    assert bench.kernel.taps == {}


def test_ring_may_end_where_the_memory_ends(bench: Bench) -> None:
    region = bench.memory[-1]
    bench.start(TX, desc=region.guest_addr + region.size - 16 * 8)
    assert bench.state() is AgentRingState.RUNNING


def test_packed_ring_is_refused(bench: Bench) -> None:
    with pytest.raises(RingRefused, match="packed"):
        bench.start(TX, packed=True)


@pytest.mark.parametrize("what", ["set_up", "run"])
def test_ring_that_the_kernel_refuses_leaves_nothing(bench: Bench, what: str) -> None:
    call = os.dup(bench.driver(TX).call_fd)
    bench.kernel.refusals[what] = errno.EFAULT
    with pytest.raises(RingRefused, match="Bad address"):
        bench.start(TX, call=Eventfd(call))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(call)
    bench.kernel.refusals.clear()
    bench.start(TX)
    assert bench.state() is AgentRingState.RUNNING


def test_refused_ring_closes_what_it_was_given(bench: Bench) -> None:
    call, kick = (os.dup(bench.driver(TX).call_fd) for _ in range(2))
    with pytest.raises(RingRefused):
        bench.start(TX, desc=1, call=Eventfd(call), kick_fd=kick, owns_kick=True)
    for fd in (call, kick):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_memory_of_too_many_regions_refuses_the_rings_until_there_is_other(
    bench: Bench,
) -> None:
    bench.kernel.refusals["set_memory"] = errno.E2BIG
    page = bench.memory[0].host_addr
    bench.plane.set_memory([MemRegion(n << 12, 4096, page) for n in range(65)])
    with pytest.raises(RingRefused, match=r"65 regions.*max_mem_regions"):
        bench.start(TX)
    bench.kernel.refusals.clear()
    bench.plane.set_memory(bench.memory)
    bench.start(TX)
    assert bench.state() is AgentRingState.RUNNING


def test_kernels_are_closed_also_if_a_ring_cannot_be_halted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not would go on with memory that is unmapped next."""

    def fail(_number: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    bench.start(TX)
    with monkeypatch.context() as patch:
        patch.setattr(bench.kernel, "base", fail)
        with pytest.raises(OSError, match="Input/output error"):
            bench.plane.close()
    assert bench.kernel.closed


@pytest.mark.parametrize("takes_uso", [False, True])
def test_plane_offers_what_the_kernel_and_the_tap_can(takes_uso: bool) -> None:
    bench = Bench(takes_uso=takes_uso)
    try:
        offers = bench.plane.offers
    finally:
        bench.close()
    assert offers is not None
    assert offers & FEATURES == FEATURES
    assert offers & Feature.NET_F_GUEST_TSO4
    assert bool(offers & Feature.NET_F_HOST_USO) == takes_uso
    assert not offers & Feature.F_RING_PACKED
    assert not offers & Feature.F_NOTIFY_ON_EMPTY  # this kernel's has it not


def test_one_pairs_packets_and_bytes_are_the_taps(bench: Bench) -> None:
    for index in (RX, TX):
        bench.start(index, call=Doorbell(ctypes.addressof(bench.register), 2, index))
    bench.counters = (700, 7, *[0] * 6, 300, 3, *[0] * 6)
    for _ in range(5):
        bench.plane.tick()
    stats = [bench.plane.status(index).stats for index in (RX, TX)]
    assert [(one.packets, one.bytes) for one in stats] == [(3, 300), (7, 700)]
    assert bench.plane.summary()["not_counted"] == ["kicks", "drops"]


def test_several_pairs_packets_are_counted_for_all_together(two_pairs: Bench) -> None:
    """A ring's index says nothing: it may have gone round between two ticks."""
    two_pairs.start(3)
    two_pairs.complete(3, 5)
    two_pairs.counters = (7 << 20, 70_000, *[0] * 6, 300, 3, *[0] * 6)
    for _ in range(5):
        two_pairs.plane.tick()
    stats = two_pairs.plane.status(3).stats
    assert (stats.packets, stats.bytes) == (0, 0)
    summary = two_pairs.plane.summary()
    assert {"packets", "octets"} <= set(summary["not_counted"])
    assert summary["totals"] == {
        "rx_packets": 70_000,
        "rx_bytes": 7 << 20,
        "tx_packets": 3,
        "tx_bytes": 300,
    }


def test_tap_that_could_not_be_read_yet_has_counted_nothing() -> None:
    bench = Bench(counters=None)
    try:
        bench.start(TX)
        assert bench.plane.status(TX).stats.packets == 0
        assert "packets" in bench.plane.summary()["not_counted"]
        assert bench.plane.summary()["totals"] == {}
    finally:
        bench.close()


def test_tap_that_cannot_be_read_keeps_the_counts(bench: Bench) -> None:
    bench.start(TX)
    bench.counters = (700, 7, *[0] * 14)
    for _ in range(5):
        bench.plane.tick()
    bench.counters = None
    for _ in range(5):
        bench.plane.tick()
    assert bench.plane.status(TX).stats.packets == 7


def test_ring_that_was_never_started_is_idle(bench: Bench) -> None:
    assert bench.state(RX) is AgentRingState.IDLE
