# SPDX-License-Identifier: Apache-2.0
"""Where a packed ring starts in an agent that another agent may have come before."""

from collections.abc import Iterator

import pytest

from tests.fakes.driver import Memory
from tests.fakes.packed_driver import PackedDriver, available, used
from vhostpci_guest.dataplane.interface import RingRefused, position
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, RingFlag
from vhostpci_shared.position import Position

RUNS = RingFlag.STARTED | RingFlag.ENABLED | RingFlag.PACKED


@pytest.fixture
def driver() -> Iterator[PackedDriver]:
    memory = Memory()
    driver = PackedDriver(memory, start=0x8003)
    yield driver
    driver.close()
    memory.close()


def entry(driver: PackedDriver, base: int, flags: RingFlag = RUNS) -> md.Ring:
    return md.Ring(
        session=1,
        flags=flags,
        size=driver.num,
        desc=driver.desc,
        driver=driver.avail,
        device=driver.used,
        base=base,
        kick_vector=1,
        call_peer=0,
        call_vector=0,
    )


def start(
    driver: PackedDriver, left: Position | None, ring: md.Ring | None = None
) -> int:
    ring = entry(driver, 0x8000) if ring is None else ring
    return position(left, ring, driver.memory.table())


def test_ring_starts_at_its_base_if_no_agent_has_worked_it(
    driver: PackedDriver,
) -> None:
    assert start(driver, None, entry(driver, 0x8003)) == 0x8003


def test_ring_goes_on_where_an_agent_left_it(driver: PackedDriver) -> None:
    assert start(driver, Position(at=0x8003, next=0x8003)) == 0x8003


def test_update_that_an_agent_announced_counts_if_it_was_made(
    driver: PackedDriver,
) -> None:
    left = Position(at=0x8003, next=0x8005)
    driver.put_flags(0x8003, available(0x8003))
    assert start(driver, left) == 0x8003
    driver.put_flags(0x8003, used(0x8003))
    assert start(driver, left) == 0x8005


def test_ring_whose_next_descriptor_is_used_is_refused_for_good(
    driver: PackedDriver,
) -> None:
    """A new session would lead nowhere else."""
    driver.put_flags(0x8003, used(0x8003))
    with pytest.raises(RingRefused, match="reload the master's driver") as caught:
        start(driver, Position(at=0x8003, next=0x8003))
    assert caught.value.state is AgentRingState.BROKEN


def test_ring_that_was_worked_by_an_agent_that_left_nothing_is_refused(
    driver: PackedDriver,
) -> None:
    with pytest.raises(RingRefused, match="its position is lost"):
        start(driver, None, entry(driver, 0x8000, RUNS | RingFlag.RESUME))


def test_new_ring_may_be_given_to_a_second_agent(driver: PackedDriver) -> None:
    driver.forget(0x8000)
    ring = entry(driver, 0x8000, RUNS | RingFlag.RESUME)
    assert start(driver, None, ring) == 0x8000


def test_ring_outside_the_memory_is_refused(driver: PackedDriver) -> None:
    ring = entry(driver, 0x8000 | 0x7FFF)
    with pytest.raises(RingRefused, match="not in the memory table"):
        position(None, ring, driver.memory.table()[:1])
