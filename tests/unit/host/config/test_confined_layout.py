# SPDX-License-Identifier: Apache-2.0
"""A confined master's memory: what lies where, for all sizes that are taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.config.confined import (
    LEAST_POOL,
    MIB,
    MOST_POOL,
    POOL,
    RING_AREA,
)
from vhostpci_host.config.confined_layout import (
    AREA,
    GIB,
    LOW,
    LOW_END,
    Machine,
    layout,
    pool_for,
)
from vhostpci_host.config.kernel_words import SLOT
from vhostpci_host.errors import HostError

SIZES = [512, 1024, 1676, 2048, 4096, 8192, 1 << 20]
POOLS = [1 << n for n in range(30) if LEAST_POOL <= MIB << n <= MOST_POOL]


@pytest.mark.parametrize("machine", Machine)
@pytest.mark.parametrize("attached", [False, True], ids=["arena", "attach"])
@given(
    memory=st.integers(400, 1 << 22).map(lambda mib: mib * MIB),
    pool=st.sampled_from(POOLS).map(lambda mib: mib * MIB),
)
def test_parts_are_the_memory_without_holes_or_it_is_refused(
    machine: Machine, attached: bool, memory: int, pool: int
) -> None:
    try:
        its = layout(memory, pool, machine, attached=attached)
    except HostError:
        return
    assert sum(part.size for part in its.parts) == memory
    assert [part.name for part in its.parts if part.is_shared] == ["shared"]
    for part, after in zip(its.parts, its.parts[1:], strict=False):
        assert after.start in (part.end, 4 * GIB)
    assert its.parts[-1].end > 4 * GIB
    # Linux takes a ring area only at a multiple of a page block.
    assert its.rings % (4 * MIB) == 0
    # What QEMU, a boot loader or Linux puts at the beginning stays out of the region.
    enough = LOW if machine is Machine.Q35 else 2 * GIB
    assert its.parts[0].size >= enough
    assert its.parts[0].end == its.part("shared").start


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_nothing_below_4_gib_is_above_a_q35s_region_for_linux(
    size: int, pool: int
) -> None:
    try:
        its = layout(size * MIB, pool * MIB, Machine.Q35, attached=False)
    except HostError:
        assert (size, pool) == (512, 256)
        return
    boot = its.part("boot")
    assert boot.start == its.part("shared").end
    assert its.below_4g == boot.end <= LOW_END
    # So nothing below is lent: with the ratio 1, Linux keeps as much free.
    assert its.part("high").size >= boot.start - its.pool
    words = its.kernel_words().split()
    assert f"memmap={boot.size // MIB}M%{boot.start:#x}-1+2" in words
    assert {"numa=off", "nokaslr", "init_on_alloc=1"} < {*words}
    assert its.kernel_words().endswith(' sysctl.vm.lowmem_reserve_ratio="1 1"')


@pytest.mark.parametrize(
    ("memory", "pool", "limits"),
    [
        (512, 64, (16, 0)),
        (1024, 64, (208, 128)),
        (4096, 64, (208, 128)),
        (8192, 64, (344, 384)),
        (8192, 256, (208, 128)),
    ],
)
def test_initrd_has_room_above_a_q35s_region(
    memory: int, pool: int, limits: tuple[int, int]
) -> None:
    """See docs/confined.md, "Booting", for what was tried."""
    its = layout(memory * MIB, pool * MIB, Machine.Q35, attached=False)
    assert its.initrd_limits() == tuple(limit * MIB for limit in limits)


@pytest.mark.parametrize("pool", POOLS)
def test_no_pool_fits_above_a_virts_region(pool: int) -> None:
    its = layout(8 * GIB, pool * MIB, Machine.VIRT, attached=False)
    assert 0 < 4 * GIB - its.part("shared").end < pool * MIB
    assert "memmap" not in its.kernel_words()


def test_words_of_the_layout_that_vm_tests_have() -> None:
    its = layout(1676 * MIB, POOL, Machine.Q35, attached=False)
    assert its.part("shared").start == 0x8000000
    assert its.part("shared").size == POOL + RING_AREA
    assert its.kernel_words() == (
        "numa=off nokaslr swiotlb=32768,force cma=16M@0xc000000-0xd000000 "
        "memmap=256M%0xd000000-1+2 init_on_alloc=1 "
        'sysctl.vm.lowmem_reserve_ratio="1 1"'
    )


@pytest.mark.parametrize(
    ("machine", "least"), [(Machine.Q35, 416 * MIB), (Machine.VIRT, 6400 * MIB)]
)
def test_least_memory_is_named(machine: Machine, least: int) -> None:
    layout(least, POOL, machine, attached=False)
    with pytest.raises(HostError, match=f"give it {least // MIB}M or more"):
        layout(least - MIB, POOL, machine, attached=False)


def test_least_memory_is_that_with_its_own_boot_part() -> None:
    """From 1 GiB on, the boot part is larger."""
    with pytest.raises(HostError, match="give it 1280M or more"):
        layout(1000 * MIB, 256 * MIB, Machine.Q35, attached=True)
    layout(1280 * MIB, 256 * MIB, Machine.Q35, attached=True)


def test_pool_holds_full_rings_of_the_largest_packets() -> None:
    assert [pool_for(entries) // MIB for entries in (256, 1024)] == [32, 128]
    assert pool_for(256) <= POOL


def test_processors_that_a_pool_is_enough_for() -> None:
    its = layout(GIB, 16 * MIB, Machine.Q35, attached=False)
    assert its.processors == 64
    assert AREA == 128 * SLOT == 256 * 1024
