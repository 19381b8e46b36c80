# SPDX-License-Identifier: Apache-2.0
"""The master's memory changes: as one table, region by region, or by a cut."""

import os
from dataclasses import replace

import pytest

from tests.fakes.frontend import WITH_SLOTS, Direct, FrontEnd, Refused, RingAt, region
from tests.fakes.windows import MIB, Ram
from vhostpci_host.vhost_user.backend import Backend
from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import ProtocolFeature, Request

RX = RingAt.nth(0)


def test_ring_goes_on_from_its_index_after_new_memory(
    qemu: FrontEnd, backend: Backend, ram: Ram
) -> None:
    qemu.driver_ok([RX])
    backend.setup.find_position(0)  # the device starts it
    ram.use(RX.used, 7)
    qemu.set_memory()
    assert backend.setup.runs(0)
    assert backend.setup.rings[0].base == 7


def test_table_that_is_refused_stops_no_ring(ram: Ram, backend: Backend) -> None:
    quiesced: list[frozenset[int]] = []
    memory = [(region(ram.size), ram.fd)]
    with FrontEnd(Direct(backend, quiesced.append), memory) as qemu:
        qemu.connect()
        qemu.driver_ok([RX])
        qemu.regions.append((region(MIB, guest_addr=MIB), ram.fd))
        with pytest.raises(Refused):
            qemu.set_memory()
        assert quiesced == []
        assert backend.setup.runs(0)


@pytest.mark.parametrize("left", [0, 1], ids=["nothing", "one byte"])
def test_index_in_a_file_that_was_cut_is_the_one_where_the_ring_started(
    qemu: FrontEnd, ram: Ram, left: int
) -> None:
    qemu.driver_ok([RingAt.nth(0, base=7)])
    ram.use(RX.used, 0x1234)
    os.ftruncate(ram.fd, RX.used + virtio.USED_IDX_OFFSET + left)
    assert qemu.stop_ring(0) == 7


def test_memory_may_come_in_single_regions(ram: Ram) -> None:
    backend = Backend(1, ram)
    low, high = region(MIB), region(MIB, guest_addr=8 * MIB, offset=MIB)
    with FrontEnd(Direct(backend), [], acks=WITH_SLOTS) as qemu:
        qemu.connect()
        assert vu.U64.parse(qemu.ask(Request.GET_MAX_MEM_SLOTS)).value == 256
        for one in (low, high):
            qemu.send(Request.ADD_MEM_REG, vu.SingleRegion(one), ram.fd)
        qemu.start_ring(RX)
        qemu.enable()
        qemu.send(Request.REM_MEM_REG, vu.SingleRegion(high))
        assert backend.setup.runs(0)
        assert [p.region for p in backend.setup.memory.regions] == [low]


@pytest.mark.parametrize("slots", [True, False], ids=["regions", "table"])
def test_addresses_of_rings_may_be_the_guests(ram: Ram, slots: bool) -> None:
    """With GPA_ADDRESSES the regions' user addresses mean nothing: all may be 0."""
    backend = Backend(1, ram)
    regions = [
        replace(region(MIB, guest_addr=at, offset=offset), user_addr=0)
        for at, offset in ((0, 0), (8 * MIB, MIB))
    ]
    acks = ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.GPA_ADDRESSES
    with FrontEnd(Direct(backend), [], acks=acks) as qemu:
        qemu.connect()
        if slots:
            for one in regions:
                qemu.send(Request.ADD_MEM_REG, vu.SingleRegion(one), ram.fd)
        else:
            qemu.regions = [(one, ram.fd) for one in regions]
            qemu.set_memory()
        qemu.start_ring(RX)
        qemu.enable()
        areas = backend.setup.rings[0].areas
        assert areas is not None
        assert (areas.desc, areas.driver, areas.device) == (RX.desc, RX.avail, RX.used)
        assert backend.setup.runs(0)
        assert [p.region.guest_addr for p in backend.setup.memory.regions] == [
            *(0, 8 * MIB)
        ]
        if slots:
            qemu.send(Request.REM_MEM_REG, vu.SingleRegion(regions[1]))
            assert len(backend.setup.memory.regions) == 1


def test_guest_address_of_a_ring_outside_the_memory_is_refused(ram: Ram) -> None:
    backend = Backend(1, ram)
    memory = [(region(MIB), ram.fd)]
    gpa = ProtocolFeature.GPA_ADDRESSES
    direct = Direct(backend)
    with FrontEnd(direct, memory, acks=gpa) as qemu:
        qemu.connect()
        qemu.set_memory()
        with direct.refuses("used ring: address 0x100000"):
            qemu.start_ring(replace(RX, used=MIB))
        assert not backend.setup.runs(0)


def test_region_added_again_for_each_queue_pair_quiesces_no_ring(ram: Ram) -> None:
    """QEMU 7.2 adds, and removes, each region for each of its vhost devices."""
    backend = Backend(2, ram)
    quiesced: list[frozenset[int]] = []
    one = vu.SingleRegion(region(ram.size))
    direct = Direct(backend, quiesced.append)
    with FrontEnd(direct, [], queue_pairs=2, acks=WITH_SLOTS) as qemu:
        qemu.connect()
        qemu.send(Request.ADD_MEM_REG, one, ram.fd, need_reply=True)
        qemu.start_ring(RX)
        qemu.enable()
        qemu.send(Request.ADD_MEM_REG, one, ram.fd, need_reply=True)
        assert backend.setup.runs(0)
        assert quiesced == []
        qemu.send(Request.REM_MEM_REG, one, need_reply=True)
        qemu.send(Request.REM_MEM_REG, one, need_reply=True)
        assert quiesced == [{0}]
        assert direct.refusals == []


def test_region_that_is_removed_again_quiesces_no_ring(ram: Ram) -> None:
    backend = Backend(1, ram)
    quiesced: list[frozenset[int]] = []
    other = vu.SingleRegion(region(MIB, guest_addr=8 * MIB, offset=MIB))
    with FrontEnd(Direct(backend, quiesced.append), [], acks=WITH_SLOTS) as qemu:
        qemu.connect()
        for one in (vu.SingleRegion(region(MIB)), other):
            qemu.send(Request.ADD_MEM_REG, one, ram.fd)
        qemu.start_ring(RX)
        qemu.enable()
        for _ in range(2):
            qemu.send(Request.REM_MEM_REG, other)
        assert quiesced == [{0}]
        assert backend.setup.runs(0)


def test_ring_waits_while_its_region_is_away_and_another_one_is_there(
    ram: Ram, backend: Backend, qemu: FrontEnd
) -> None:
    low, high = region(MIB), region(MIB, guest_addr=8 * MIB, offset=MIB)
    qemu.regions = [(low, ram.fd), (high, ram.fd)]
    qemu.driver_ok([RX])
    qemu.send(Request.REM_MEM_REG, vu.SingleRegion(low))
    assert not backend.setup.runs(0)
    qemu.send(Request.ADD_MEM_REG, vu.SingleRegion(low), ram.fd)
    assert backend.setup.runs(0)


def test_ring_waits_while_its_region_is_away(
    ram: Ram, backend: Backend, qemu: FrontEnd
) -> None:
    """QEMU removes and adds regions one by one when the layout changes."""
    qemu.driver_ok([RX])
    backend.setup.find_position(0)  # the device starts it
    ram.use(RX.used, 5)
    qemu.send(Request.REM_MEM_REG, vu.SingleRegion(region(ram.size)))
    assert not backend.setup.runs(0)
    qemu.send(Request.ADD_MEM_REG, vu.SingleRegion(region(ram.size)), ram.fd)
    assert backend.setup.runs(0)
    assert backend.setup.rings[0].base == 5


def test_region_to_remove_may_bring_a_descriptor_as_old_qemu_does(
    qemu: FrontEnd, backend: Backend, ram: Ram
) -> None:
    qemu.set_memory()
    qemu.send(Request.REM_MEM_REG, vu.SingleRegion(region(ram.size)), ram.fd)
    assert backend.setup.memory.regions == ()
