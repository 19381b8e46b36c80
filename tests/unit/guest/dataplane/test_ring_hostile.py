# SPDX-License-Identifier: Apache-2.0
"""A master that changes anything at any time does no harm outside its own rings.

These tests check that each ring is running, or is BROKEN or FENCED with a reason, that
the worker comes to rest, and that no byte outside the regions changes.  Under tox -e
asan the sanitizers check every access of the ring code as well.
"""

import random
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.driver import INDIRECT, MIB, NEXT, WRITE, Desc, Driver
from tests.fakes.pair import HDR, RX, TX, Background, Pair
from tests.waiting import eventually
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_shared.metadata import AgentRingState

starts = pytest.mark.parametrize("start", [0, 2**16 - 2])

MASTERS = {
    Fault.AVAIL_IDX,
    Fault.HEAD,
    Fault.NEXT,
    Fault.LOOP,
    Fault.PIECES,
    Fault.ADDRESS,
    Fault.DIRECTION,
    Fault.INDIRECT,
    Fault.INDIRECT_SIZE,
    Fault.NESTED,
    Fault.USED_MOVED,
}

addresses = st.sampled_from(
    [
        0,
        0x10000,
        0x10000 + MIB - 8,
        0x10000 + 2 * MIB - 8,
        1 << 32,
        (1 << 32) + 64,
        (1 << 32) + 4 * MIB - 64,
        2**64 - 8,
    ]
)
lengths = st.sampled_from([0, 1, 10, 12, 16, 32, 48, 60, 128, 1514, 70000, 2**32 - 1])
flags = st.integers(0, 7) | st.sampled_from([0, NEXT, WRITE, WRITE | NEXT, INDIRECT])
descs = st.builds(Desc, addresses, lengths, flags, st.integers(0, 9))
rings = st.lists(descs, min_size=1, max_size=8)


def check(pair: Pair) -> None:
    for index in (RX, TX):
        status = pair.status(index)
        if status.state == AgentRingState.RUNNING:
            assert status.fault == Fault.NONE
        else:
            assert status.fault in MASTERS
        assert pair.worker.stop(index) == status.index


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    start=st.sampled_from([0, 2**16 - 2]),
    mergeable=st.booleans(),
    event_idx=st.booleans(),
    table=rings,
    indirect=rings,
    heads=st.lists(st.integers(0, 9), max_size=10),
    packets=st.lists(st.integers(1, 3000), max_size=4),
)
def test_any_descriptors_are_worked_off_or_break_the_ring(
    start: int,
    mergeable: bool,
    event_idx: bool,
    table: list[Desc],
    indirect: list[Desc],
    heads: list[int],
    packets: list[int],
) -> None:
    with Pair(
        start=start, mergeable=mergeable, event_idx=event_idx, hold=0.001
    ) as pair:
        for driver in (pair.rx, pair.tx):
            for i, desc in enumerate(table):
                driver.put_desc(i, desc)
        pair.memory.write(0x10000, b"".join(bytes(d) for d in indirect))
        for length in packets:
            pair.tap.send(HDR + bytes(length))
        for head in heads:
            for driver in (pair.rx, pair.tx):
                driver.put_avail(head)
                driver.publish(driver.avail_idx)
            pair.settle()
            pair.packets()
        check(pair)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=64, max_size=2048), seed=st.integers(0, 2**32))
def test_any_bytes_in_the_rings_are_survived(data: bytes, seed: int) -> None:
    rng = random.Random(seed)
    with Pair(hold=0.001) as pair:
        for driver in (pair.rx, pair.tx):
            end = driver.used + 6 + 8 * driver.num
            pair.memory.write(driver.desc, (data * 8)[: end - driver.desc])
            driver.move_used(rng.choice([0, 0, 0, 1]))
            driver.publish(rng.randrange(10))
        pair.tap.send(HDR + bytes(200))
        pair.settle()
        check(pair)


class Scribbler:
    """Writes over a driver's ring all the time, mostly values that pass the checks."""

    def __init__(self, driver: Driver, buffer: int, table: int, seed: int) -> None:
        self.driver, self.buffer, self.table = driver, buffer, table
        self.rng = random.Random(seed)

    def desc(self) -> Desc:
        rng = self.rng
        kind = rng.random()
        if kind < 0.2:
            return Desc(self.table, 16 * rng.randrange(1, 9), INDIRECT)
        if kind < 0.25:
            return Desc(rng.getrandbits(64), rng.getrandbits(32), rng.randrange(8), 99)
        more = NEXT if rng.random() < 0.5 else 0
        length = rng.choice([0, 1, 12, 100, 1500])
        return Desc(
            self.buffer,
            length,
            self.driver.flags | more,
            rng.randrange(self.driver.num),
        )

    def step(self) -> None:
        for _ in range(50):
            self.driver.put_desc(self.rng.randrange(self.driver.num), self.desc())
            at = self.table + 16 * self.rng.randrange(8)
            self.driver.memory.write(at, bytes(self.desc()))


@starts
@pytest.mark.parametrize("seed", range(3))
def test_descriptors_that_change_all_the_time_are_survived(
    start: int, seed: int
) -> None:
    with Pair(start=start, num=64, threaded=True, hold=0.001) as pair:
        buffer, table = pair.memory.allocate(4096), pair.memory.allocate(128)
        restarts = 0

        def restart() -> None:
            """Go on after a fault, as the agent would in a new session."""
            nonlocal restarts
            for index in (RX, TX):
                if pair.state(index) != AgentRingState.RUNNING:
                    pair.restart(index)
                    restarts += 1

        def feed() -> bool:
            restart()
            for index in (RX, TX):
                driver = pair.driver(index)
                for _ in range(4):
                    out = (driver.avail_idx - driver.used_idx()) % 2**16
                    if out < driver.num:
                        driver.put_avail(random.randrange(driver.num))
                driver.publish(driver.avail_idx)
                driver.kick()
            with suppress(BlockingIOError):
                pair.tap.send(HDR + bytes(300))
            pair.packets()
            return restarts >= 100

        scribblers = [
            Scribbler(pair.driver(index), buffer, table, seed + index)
            for index in (RX, TX)
        ]
        with Background(scribblers[0].step), Background(scribblers[1].step):
            assert eventually(feed, timeout=20)
        for index in (RX, TX):
            status = pair.status(index)
            assert status.fault in MASTERS | {Fault.NONE}
            assert status.stats.packets > 0


@starts
def test_an_avail_idx_that_changes_all_the_time_is_survived(start: int) -> None:
    rng = random.Random(start)
    with Pair(start=start, num=64, threaded=True) as pair:
        addr = pair.memory.allocate(64)
        for i in range(64):
            pair.tx.put_desc(i, Desc(addr, 64))
            pair.tx.put_avail(i)

        def jump() -> None:
            for _ in range(100):
                pair.tx.publish(pair.tx.used_idx() + rng.choice([0, 1, 5, 64, 65, 999]))

        with Background(jump):
            assert eventually(lambda: [pair.tx.kick(), pair.events() > 0][1])
        assert pair.status(TX).fault == Fault.AVAIL_IDX


@starts
def test_nothing_outside_the_regions_is_written(start: int) -> None:
    """The region is a part of a larger mapping, and the rest must not change."""
    with Pair((1 << 32, 4 * MIB), start=start, num=64, running=False) as pair:
        (region,) = pair.memory.table()
        fence = 64 * 1024
        pair.memory.write(region.guest_addr + region.size - fence, b"#" * fence)
        shorter = type(region)(region.guest_addr, region.size - fence, region.host_addr)
        pair.worker.set_memory([shorter])
        pair.start(RX)
        end = shorter.guest_addr + shorter.size
        rng = random.Random(start)
        for _ in range(100):
            length = rng.choice([12, 100, 2000])
            pair.rx.hand_over(
                Desc(end - length + rng.choice([0, 0, 0, 1]), length, WRITE)
            )
            pair.tap.send(HDR + b"!" * length)
            pair.settle()
            if pair.state(RX) == AgentRingState.BROKEN:
                assert pair.status(RX).fault == Fault.ADDRESS
                pair.restart(RX)
        assert pair.memory.read(end, fence) == b"#" * fence
        assert pair.status(RX).stats.packets > 0
