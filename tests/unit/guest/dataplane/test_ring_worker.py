# SPDX-License-Identifier: Apache-2.0
"""The worker's thread, and how its owner controls it."""

import errno
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import fields

import pytest

from tests.fakes.driver import Desc
from tests.fakes.pair import HDR, RX, TX, Background, Pair, RingOptions, wait_for
from tests.threads import is_gone, only_thread, processor_time, thread_statuses
from tests.waiting import TIMEOUT, eventually
from vhostpci_guest.dataplane.faults import Fault, RingError
from vhostpci_guest.dataplane.interface import Stats
from vhostpci_guest.dataplane.native import RingIndex, Worker, c_layout
from vhostpci_guest.interfaces import Doorbell, Eventfd
from vhostpci_shared.metadata import AgentRingState

pytestmark = pytest.mark.parametrize("start", [0, 2**16 - 2])

both = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


class Traffic:
    """Keeps both rings busy while they run, with the same buffers again and again."""

    def __init__(self, pair: Pair, length: int = 200) -> None:
        self.pair = pair
        self.sent = self.taken = 0
        self._send = [
            Desc(pair.memory.allocate(length), length) for _ in range(pair.tx.num)
        ]
        self._post = [
            Desc(pair.memory.allocate(length), length) for _ in range(pair.rx.num)
        ]
        self._free = pair.rx.num

    def step(self) -> None:
        pair = self.pair
        pair.tx.collect()
        while self.sent - self.taken < pair.tx.num // 2 and pair.tx._free:
            pair.tx.offer(self._send[self.sent % len(self._send)])
            self.sent += 1
        pair.tx.kick()
        for _ in pair.rx.collect():
            self._free += 1
        while self._free:
            pair.rx.offer(self._post[self._free - 1])
            self._free -= 1
        pair.rx.kick()
        self.taken += len(pair.packets())
        with suppress(BlockingIOError):
            pair.tap.send(HDR + bytes(100))


@both
@pytest.mark.parametrize("kicks", [True, False], ids=["kicked", "polled"])
@pytest.mark.parametrize("spin", [0.0, 50e-6])
def test_packets_pass_both_ways(
    start: int, event_idx: bool, kicks: bool, spin: float
) -> None:
    with Pair(
        start=start, num=64, event_idx=event_idx, kicks=kicks, spin=spin, threaded=True
    ) as pair:
        for i in range(50):
            pair.tx.send(HDR, bytes([i]))
            pair.tx.kick()
            pair.rx.post(100)
            pair.rx.kick()
            pair.tap.send(HDR + bytes([i]))
            assert wait_for(pair.packets) == [HDR + bytes([i])]
            assert wait_for(pair.rx.collect)[0].data[12:] == bytes([i])
            assert len(wait_for(pair.tx.collect)) == 1
        assert (pair.status(TX).stats.polls == 0) == kicks


@both
def test_no_wake_up_is_lost_in_a_ping_pong(start: int, event_idx: bool) -> None:
    """Each chain is offered at the moment in which the worker goes to sleep."""
    with Pair(start=start, num=8, event_idx=event_idx, threaded=True) as pair:
        buffer = Desc(pair.memory.allocate(64), 64)
        for _ in range(3000):
            pair.tx.offer(buffer)
            pair.tx.kick()
            while not pair.tx.collect():
                pass
            pair.packets()
        assert pair.status(TX).stats.packets == 3000


@both
def test_a_ring_stops_at_once_under_load(start: int, event_idx: bool) -> None:
    with Pair(start=start, num=64, event_idx=event_idx, threaded=True) as pair:
        traffic = Traffic(pair)
        with Background(traffic.step):
            for _ in range(20):
                time.sleep(0.005)
                for index in (TX, RX):
                    ran = processor_time("vhostpci-0")
                    base = pair.worker.stop(index, timeout=TIMEOUT)
                    # Its own time: it may wait long for a processor.
                    assert processor_time("vhostpci-0") - ran < 0.2
                    assert base == pair.driver(index).used_idx()
                    pair.start(index, base=base)
        for index in (TX, RX):
            assert pair.state(index) == AgentRingState.RUNNING
            assert pair.status(index).stats.packets > 0


def test_a_stopped_ring_is_not_touched(start: int) -> None:
    with Pair(start=start, num=64, threaded=True) as pair:
        traffic = Traffic(pair)
        with Background(traffic.step):
            time.sleep(0.02)
            pair.worker.stop(RX)
            pair.worker.stop(TX)
        for _ in range(3):
            pair.rx.put_avail(99)
            pair.tx.put_avail(99)
        pair.rx.publish(pair.rx.avail_idx)
        pair.tx.publish(pair.tx.avail_idx)
        rings = pair.rx.bytes_of_ring(), pair.tx.bytes_of_ring()
        pair.rx.calls(), pair.tx.calls()
        with suppress(BlockingIOError):  # the socket is full: no packet more is needed
            pair.tap.send(HDR + b"stays in the TAP")
        pair.rx.kick()
        pair.tx.kick()
        time.sleep(0.02)
        assert (pair.rx.bytes_of_ring(), pair.tx.bytes_of_ring()) == rings
        assert (pair.rx.calls(), pair.tx.calls()) == (0, 0)


def test_memory_may_be_replaced_between_two_sessions(start: int) -> None:
    with Pair(start=start, num=64, threaded=True) as pair:
        pair.tx.send(HDR, b"one")
        pair.tx.kick()
        assert eventually(lambda: pair.status(TX).stats.packets == 1)
        base = {index: pair.worker.stop(index) for index in (RX, TX)}
        pair.worker.set_memory([])
        pair.worker.set_memory(pair.memory.table())
        for index in (RX, TX):
            pair.start(index, base=base[index])
        pair.tx.send(HDR, b"two")
        pair.tx.kick()
        assert eventually(lambda: pair.status(TX).stats.packets == 2)


@pytest.mark.parametrize("index", [RX, TX])
def test_a_broken_ring_signals_the_eventfd_of_its_owner(
    start: int, index: RingIndex
) -> None:
    with Pair(start=start, threaded=True) as pair:
        pair.driver(index).put_avail(99)
        pair.driver(index).publish(pair.driver(index).avail_idx)
        pair.driver(index).kick()
        assert eventually(lambda: pair.events() > 0)
        status = pair.status(index)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.HEAD)
        assert pair.worker.stop(index) == start


def test_a_kick_eventfd_that_does_not_work_breaks_the_ring(start: int) -> None:
    with Pair(start=start, threaded=True, running=False) as pair:
        with open("/dev/null") as null:
            pair.worker.start(TX, pair.conf(TX, kick_fd=null.fileno()))
            assert eventually(lambda: pair.state(TX) == AgentRingState.BROKEN)
        assert pair.status(TX).fault == Fault.KICK


def test_call_that_is_a_socket_gets_eight_bytes(start: int) -> None:
    """User Mode Linux has such calls."""
    ours, master = socket.socketpair()
    with ours, master, Pair(start=start, threaded=True, running=False) as pair:
        pair.start(TX, call=Eventfd(ours.fileno()))
        pair.tx.send(HDR, b"one")
        pair.tx.kick()
        master.settimeout(TIMEOUT)
        assert master.recv(9) == (1).to_bytes(8, "little")


def test_full_socket_that_the_master_made_blocking_holds_no_worker_up(
    start: int,
) -> None:
    ours, master = socket.socketpair()
    with ours, master, Pair(start=start, threaded=True, running=False) as pair:
        pair.start(TX, call=Eventfd(ours.fileno()))
        with suppress(BlockingIOError):
            while True:
                os.write(ours.fileno(), bytes(4096))
        ours.setblocking(True)
        pair.tx.send(HDR, b"one")
        pair.tx.kick()
        assert eventually(lambda: pair.status(TX).stats.calls == 1)
        assert pair.worker.stop(TX, 1.0) == (start + 1) % 2**16


@pytest.mark.parametrize("spin", [0.0, 5e-3])
def test_an_idle_worker_sleeps(start: int, spin: float) -> None:
    with Pair(start=start, threaded=True, spin=spin) as pair:
        pair.rx.post(100)
        pair.rx.kick()
        time.sleep(0.05)
        before = processor_time("vhostpci-0")
        time.sleep(0.2)
        assert processor_time("vhostpci-0") - before < 0.01


def test_a_worker_that_polls_needs_no_kick_for_the_next_packet(start: int) -> None:
    # Half a second, so that it is busy still when we get a processor again.
    with Pair(start=start, event_idx=True, threaded=True, spin=0.5) as pair:
        buffer = Desc(pair.memory.allocate(64), 64)
        for _ in range(50):
            pair.tx.offer(buffer)
            pair.tx.kick()
            assert wait_for(pair.tx.collect)
            assert wait_for(pair.packets)
        assert pair.status(TX).stats.kicks < 10


def test_a_worker_that_polls_sees_a_packet_in_the_tap(start: int) -> None:
    with Pair(start=start, threaded=True, spin=0.5) as pair:
        for _ in range(8):
            pair.rx.post(100)
        pair.rx.kick()
        late = []
        for _ in range(5):
            began = time.monotonic()
            pair.tap.send(HDR + b"x")
            assert wait_for(pair.rx.collect)
            late.append(time.monotonic() - began)
        # It sleeps before the first one.  A worker that did not look would be late
        # each time; one that does, only where it waited for a processor.
        assert min(late[1:]) < 0.25


def test_a_worker_does_not_poll_when_packets_come_seldom(start: int) -> None:
    with Pair(start=start, event_idx=True, threaded=True, spin=0.01) as pair:
        buffer = Desc(pair.memory.allocate(64), 64)
        before = processor_time("vhostpci-0")
        for _ in range(10):
            time.sleep(0.03)
            pair.tx.offer(buffer)
            pair.tx.kick()
            assert wait_for(pair.tx.collect)
        assert processor_time("vhostpci-0") - before < 0.04


def test_a_worker_without_buffers_sleeps_though_the_tap_has_packets(
    start: int,
) -> None:
    with Pair(start=start, threaded=True) as pair:
        pair.tap.send(HDR + b"x")
        time.sleep(0.05)
        before = processor_time("vhostpci-0")
        time.sleep(0.2)
        assert processor_time("vhostpci-0") - before < 0.01


def test_a_worker_whose_tap_is_full_sleeps(start: int) -> None:
    with Pair(start=start, num=512, threaded=True) as pair:
        for _ in range(200):
            pair.tx.send(HDR, bytes(4000))
        pair.tx.kick()
        assert eventually(lambda: pair.status(TX).stats.tap_full > 0)
        time.sleep(0.05)
        before = processor_time("vhostpci-0")
        time.sleep(0.2)
        assert processor_time("vhostpci-0") - before < 0.01
        got = 0
        while got < 200:
            got += len(pair.packets())
            time.sleep(0)


def test_a_worker_that_waits_for_kicks_sleeps_though_the_tap_is_gone(
    start: int,
) -> None:
    with Pair(start=start, threaded=True) as pair:
        pair.tap.close()
        time.sleep(0.05)
        before = processor_time("vhostpci-0")
        time.sleep(0.2)
        assert processor_time("vhostpci-0") - before < 0.01


def test_polling_backs_off(start: int) -> None:
    with Pair(start=start, threaded=True, kicks=False, poll_max=0.005) as pair:
        # As many as never come if the pauses grow without end.
        assert eventually(lambda: pair.status(TX).stats.polls >= 30, 20)
        began, before = time.monotonic(), pair.status(TX).stats.polls
        time.sleep(0.5)
        polls = pair.status(TX).stats.polls - before
        assert polls <= 1 + 1.05 * (time.monotonic() - began) / 0.005


def test_a_sleeping_worker_drops_a_held_packet_in_time(start: int) -> None:
    with Pair(start=start, threaded=True, hold=0.03) as pair:
        pair.rx.post(100)
        pair.rx.kick()
        pair.tap.send(HDR + bytes(500))
        assert eventually(lambda: pair.status(RX).stats.drop_no_room == 1, 20)


def test_a_ring_starts_once(start: int) -> None:
    with Pair(start=start, threaded=True) as pair:
        with pytest.raises(RingError, match="it is running; stop it first") as caught:
            pair.start(RX)
        assert caught.value.errno == errno.EBUSY


def test_a_stopped_ring_can_be_stopped_again(start: int) -> None:
    with Pair(start=start, threaded=True) as pair:
        pair.tx.send(HDR, b"x")
        pair.tx.kick()
        assert eventually(lambda: pair.status(TX).stats.packets == 1)
        assert {pair.worker.stop(TX) for _ in range(5)} == {(start + 1) % 2**16}


def test_a_ring_that_was_never_started_does_not_stop(start: int) -> None:
    with (
        Pair(start=start, running=False) as pair,
        pytest.raises(RingError, match="was never started"),
    ):
        pair.worker.stop(RX)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 3},
        {"size": 65536},
        {"base": 65536},
        {"base": -1},
        {"hdr_len": 11},
        {"hdr_len": 10},
        {"max_packet": 0},
        {"max_packet": 65601},
        {"desc": 1 << 64},
        {"meta_addr": 4},
    ],
    ids=lambda wrong: "-".join(f"{k}={v}" for k, v in wrong.items()),
)
def test_impossible_options_are_refused(start: int, wrong: RingOptions) -> None:
    with Pair(start=start, running=False) as pair:
        conf = pair.conf(TX, **wrong)
        with pytest.raises(RingError) as caught:
            pair.worker.start(TX, conf)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("hdr_len", [0, 9, 11, 13])
def test_a_net_header_of_a_length_that_virtio_does_not_have_is_refused(
    start: int, hdr_len: int
) -> None:
    with Pair(start=start, running=False, mergeable=False) as pair:
        with pytest.raises(RingError) as caught:
            pair.start(TX, hdr_len=hdr_len)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("offset", [1, 2])
def test_a_misaligned_doorbell_is_refused(start: int, offset: int) -> None:
    with Pair(start=start, running=False) as pair:
        register = pair.memory.host_addr(pair.memory.allocate(8, 4))
        with pytest.raises(RingError) as caught:
            pair.start(TX, call=Doorbell(register + offset, peer=1, vector=0))
        assert caught.value.errno == errno.EINVAL


def test_misaligned_rings_are_refused(start: int) -> None:
    with Pair(start=start, running=False) as pair:
        good = pair.conf(TX)
        for conf in (
            pair.conf(TX, desc=good.desc + 8),
            pair.conf(TX, driver=good.driver + 1),
            pair.conf(TX, device=good.device + 2),
        ):
            with pytest.raises(RingError):
                pair.worker.start(TX, conf)


def test_a_closed_worker_refuses_to_be_used(start: int) -> None:
    with Pair(start=start, threaded=True) as pair:
        pair.worker.close()
        pair.worker.close()
        with pytest.raises(ValueError, match="is closed"):
            pair.status(RX)


def test_a_worker_with_a_thread_cannot_be_stepped(start: int) -> None:
    with Pair(start=start, threaded=True) as pair, pytest.raises(RingError):
        pair.worker.step()


def test_close_ends_the_thread_with_rings_running(start: int) -> None:
    with Pair(start=start, num=64, threaded=True) as pair:
        traffic = Traffic(pair)
        with Background(traffic.step):
            time.sleep(0.02)
            pair.worker.close()
        assert is_gone("vhostpci-0")


def test_a_timeout_may_end_in_the_next_second(start: int) -> None:
    with Pair(start=start, threaded=True) as pair:
        pair.worker.close(timeout=0.999)
    assert is_gone("vhostpci-0")


def test_the_owner_may_read_stats_all_the_time(start: int) -> None:
    with Pair(start=start, num=64, threaded=True) as pair:
        traffic = Traffic(pair)
        with Background(traffic.step):
            last = 0
            for _ in range(2000):
                packets = pair.status(TX).stats.packets
                assert packets >= last
                last = packets


def test_rings_can_be_started_and_stopped_in_quick_succession(start: int) -> None:
    with Pair(start=start, num=64, threaded=True) as pair:
        traffic = Traffic(pair)
        with Background(traffic.step):
            for _ in range(300):
                for index in (RX, TX):
                    pair.start(index, base=pair.worker.stop(index))


def test_signals_do_not_reach_the_thread(start: int) -> None:
    with Pair(start=start, threaded=True):
        status = thread_statuses()[only_thread("vhostpci-0")]
        blocked = int(status["SigBlk"], 16)
        assert blocked & 1 << 14  # SIGTERM
        assert threading.active_count() == 1


def test_stats_are_those_of_c_in_the_same_order(start: int) -> None:
    members = c_layout("ring_stats").members
    assert list(members) == [field.name for field in fields(Stats)]
    # The counts of batch sizes are an array, as long as that of Python.
    sizes = {name: size for name, (_, size) in members.items()}
    assert sizes.pop("batches") == 8 * len(Stats().batches)
    assert set(sizes.values()) == {8}


@pytest.mark.parametrize("fd", [-1, 999_999])
def test_a_worker_without_a_tap_is_refused(start: int, fd: int) -> None:
    with pytest.raises(RingError, match="not a non-blocking TAP queue"):
        Worker(fd, pair=start)
