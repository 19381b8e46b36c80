# SPDX-License-Identifier: Apache-2.0
"""Packed rings: what front-ends say of them, and where they go on after a break."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.fakes.frontend import Direct, FrontEnd, RingAt, region
from tests.fakes.windows import Ram
from vhostpci_host.vhost_user.backend import Backend
from vhostpci_host.vhost_user.positions import choose
from vhostpci_shared import packed
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.position import Position
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

RX = RingAt.nth(0, base=0x8000_8000)
ORIGIN = 7
LEFT = Position(
    origin=ORIGIN,
    desc=RX.desc,
    driver=RX.avail,
    device=RX.used,
    size=256,
    at=0x8005,
    next=0x8005,
)
A, U = packed.AVAIL, packed.USED


class Master:
    """A QEMU whose card has packed rings, and what an agent has left of ring 0."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.left = Position()
        self.backend = self.connect()

    def connect(self) -> Backend:
        """Connect, as for the first time."""
        self.backend = Backend(1, self.ram, lambda _: self.left, lambda _: ORIGIN)
        regions = [(region(self.ram.size), self.ram.fd)]
        self.direct = Direct(self.backend)
        self.qemu = FrontEnd(self.direct, regions, packed=True)
        self.qemu.connect()
        return self.backend

    def start(self) -> str:
        """Start ring 0, as the device does; return what it tells of its position."""
        self.qemu.driver_ok([RX])
        return self.backend.setup.find_position(0)

    @property
    def base(self) -> int:
        return self.backend.setup.rings[0].base

    def leave(self) -> None:
        self.qemu.close()
        self.backend.close()

    def flags(self, index: int, flags: int) -> None:
        at = RX.desc + 16 * index + 14
        os.pwrite(self.ram.fd, flags.to_bytes(2, "little"), at)


@pytest.fixture
def master(ram: Ram) -> Iterator[Master]:
    master = Master(ram)
    yield master
    master.leave()


@pytest.mark.parametrize("size", [1, 3, 100, 256, 32768])
def test_ring_may_have_any_size(master: Master, size: int) -> None:
    driver = RX.desc + 16 * size
    ring = replace(RX, size=size, avail=driver, used=driver + 4)
    master.qemu.driver_ok([ring])
    areas = master.backend.setup.rings[0].areas
    assert areas is not None
    assert (areas.desc, areas.driver, areas.device) == (RX.desc, driver, driver + 4)


@pytest.mark.parametrize("size", [0, 32769])
def test_ring_without_or_with_too_many_descriptors_is_refused(
    master: Master, size: int
) -> None:
    with pytest.raises(ProtocolError, match="ring size"):
        master.qemu.driver_ok([replace(RX, size=size)])


@pytest.mark.parametrize("area", ["desc", "avail", "used"])
def test_area_that_is_not_aligned_is_refused(master: Master, area: str) -> None:
    wrong = {area: getattr(RX, area) + 2}
    with master.direct.refuses("not aligned"):
        master.qemu.driver_ok([replace(RX, **wrong)])


@pytest.mark.parametrize("area", ["desc", "avail", "used"])
def test_area_that_leaves_the_memory_is_refused(master: Master, area: str) -> None:
    end = master.ram.size
    wrong = {area: end - 16 if area == "desc" else end}
    with master.direct.refuses("region"):
        master.qemu.driver_ok([replace(RX, **wrong)])


def test_features_that_make_a_ring_split_refuse_its_size(master: Master) -> None:
    master.qemu.driver_ok([replace(RX, size=100)])
    features = master.qemu.features & ~Feature.F_RING_PACKED
    with master.direct.refuses("power of two"):
        master.qemu.send(Request.SET_FEATURES, vu.U64(features))


def test_base_of_more_than_16_bits_is_refused_for_a_split_ring(qemu: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="65535"):
        qemu.driver_ok([RX])


def test_answer_has_the_position_in_both_halves(master: Master) -> None:
    master.start()
    assert master.qemu.stop_ring(0) == 0x8000_8000  # no agent has worked it
    master.start()
    master.left = LEFT
    assert master.qemu.stop_ring(0) == 0x8005_8005


def test_answer_follows_the_descriptor_if_the_agent_died_in_an_update(
    master: Master,
) -> None:
    master.left = replace(LEFT, next=0x8007)
    for flags, expected in ((A, 0x8005_8005), (A | U, 0x8007_8007)):
        master.start()
        master.flags(5, flags)
        assert master.qemu.stop_ring(0) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"origin": ORIGIN + 1},
        {"origin": 0},
        {"desc": RX.desc + 16},
        {"driver": 0},
        {"device": 0},
        {"size": 128},
        {"at": 256},
        {"next": 0x8100},
    ],
    ids=str,
)
def test_what_an_agent_says_of_another_ring_is_not_believed(
    master: Master, change: dict[str, int]
) -> None:
    master.start()
    master.left = replace(LEFT, **change)
    assert master.qemu.stop_ring(0) == 0x8000_8000


def test_base_of_a_driver_that_was_loaded_again_counts(master: Master) -> None:
    """It follows an answer, so it is not out of date, whatever an agent has left."""
    master.start()
    master.left = LEFT
    master.qemu.stop_ring(0)
    master.flags(3, A | U)
    assert master.start() == ""
    assert master.base == 0x8000


def test_ring_goes_on_where_the_agent_left_it_when_qemu_connects_again(
    master: Master,
) -> None:
    master.start()
    master.leave()
    master.left = replace(LEFT, origin=ORIGIN - 1)  # of the daemon before, say
    for index in range(5):
        master.flags(index, A | U)
    master.connect()
    assert "stands at 0x8005" in master.start()
    assert master.base == 0x8005
    assert master.backend.setup.runs(0)


def test_ring_that_nothing_says_the_position_of_does_not_run(master: Master) -> None:
    master.flags(0, A | U)
    assert "reload the master's driver" in master.start()
    assert not master.backend.setup.runs(0)
    # The driver is loaded again.
    master.qemu.stop_ring(0)
    assert master.start() == ""
    assert master.backend.setup.runs(0)


def test_base_that_was_set_stays_when_the_ring_is_moved_before_it_runs(
    master: Master,
) -> None:
    """As User Mode Linux does it with a driver that is loaded again: it stops none."""
    master.start()
    master.left = LEFT
    moved = replace(RX, desc=0x40000)
    master.qemu.send(Request.SET_VRING_BASE, vu.VringState(0, 0))
    master.qemu.send(Request.SET_VRING_ADDR, master.qemu.address(moved))
    assert master.base == 0
    assert master.backend.setup.find_position(0) == ""
    assert master.base == 0x8000


def ring(*flags: int) -> bytes:
    return b"".join(bytes(14) + value.to_bytes(2, "little") for value in flags)


def left(at: int, then: int | None = None) -> Position:
    return Position(origin=1, size=4, at=at, next=at if then is None else then)


@pytest.mark.parametrize(
    ("base", "entry", "descriptors", "chosen"),
    [
        # The driver was loaded again: a new ring, whatever there is of the old one.
        (0x8000, None, ring(0, 0, 0, 0), 0x8000),
        (0x8000, left(0x8002), ring(A, A, 0, 0), 0x8000),
        (0x8000, left(2), ring(A, A, A, A), 0x8000),
        # User Mode Linux says 0 of a new ring.
        (0, None, ring(A, A, 0, 0), 0x8000),
        # The driver goes on, and QEMU's base is out of date.
        (0x8000, left(0x8002), ring(A | U, U, A, A), 0x8002),
        (0x8001, left(2), ring(0, A, U, A | U), 2),
        (0x8000, left(0x8001, 0x8003), ring(A | U, A | U, A, A), 0x8003),
        (0x8000, left(0x8001, 0x8003), ring(A | U, A, A, A), 0x8001),
        # QEMU has worked the ring from there on.
        (0x8003, left(0x8002), ring(A | U, A | U, A | U, A), 0x8003),
        # Nothing says it.
        (0x8000, None, ring(A | U, A, 0, 0), None),
        (0x8003, None, ring(A | U, A, 0, 0), None),
        (0x8000, left(0x8002), ring(A | U, A | U, A | U, A), None),
        (0x8003, left(0x8002), ring(A | U, A | U, A | U, A | U), None),
        (0x8004, left(0x8002), ring(A | U, A | U, A | U, A), None),
    ],
)
def test_position_of_a_new_connection(
    base: int, entry: Position | None, descriptors: bytes, chosen: int | None
) -> None:
    assert choose(base, entry, descriptors) == chosen
