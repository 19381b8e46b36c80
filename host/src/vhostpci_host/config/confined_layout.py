# SPDX-License-Identifier: Apache-2.0
"""Where the memory of a confined master lies, and the words that its kernel needs.

    q35    0 | low: private | shared | boot: private, not Linux's | ... | 4 GiB | high
    virt   1 GiB | low: private | shared | high: private, from below 4 GiB on

The shared region is the highest memory below 4 GiB that Linux can use for a bounce
pool.  So the pool comes to lie in it, right below the ring area:

  * The ring area is reserved first, at a fixed address (cma=SIZE@START-END: Linux,
    kernel/dma/contiguous.c, dma_contiguous_reserve()).
  * The bounce pool comes later, from memblock_alloc_low(): the highest free place below
    4 GiB (kernel/dma/swiotlb.c, swiotlb_memblock_alloc(); mm/memblock.c,
    __memblock_find_range_top_down()).  Above the ring area there is none.  The pool
    fills its part of the region: had anything else been there, it would not fit, it
    would lie in private memory, and no packet would cross.
  * What Linux reserves earlier for other purposes (page structures, page tables, an
    initrd that it moves) takes the highest free place of all, above 4 GiB.  So there
    must be memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..errors import HostError
from .confined import MIB, ring_area
from .kernel_words import SLOT, kernel_words

GIB = 2**30


class Machine(StrEnum):
    """QEMU's machine of the master."""

    Q35 = "q35"  # x86-64
    VIRT = "virt"  # aarch64


AREA = 128 * SLOT
"""Bytes that each processor's part of the pool has at least, and a mapping at most."""
SLOTS_OF_PACKET = 33
"""Slots of the largest packet, 64 KiB and its headers."""

LOW = 128 * MIB
"""A q35's memory below the shared region, which has the kernel's image at 16 MiB.

Programs get nothing of it (see `kernel_words.LEND_NOTHING`), so it is small.
"""
LOW_END = 896 * MIB
"""Where a q35's memory below 4 GiB ends at the latest.

Loaders take the highest memory below a limit: GRUB's initrd on a BIOS the one below
896 MiB (GRUB_LINUX_INITRD_MAX_ADDRESS), its patches for EFI 1 GiB, others 2 or 4 GiB.
So below all of those limits the highest memory is `boot`.
"""
BIOS_NEEDS = 48 * MIB
"""What SeaBIOS and GRUB's cache of the disk take beside an initrd."""
EFI_NEEDS = 128 * MIB
"""What OVMF, GRUB and the kernel take: 96 to 111 MiB above the initrd were seen, and
5 MiB of GRUB's cache of the disk below it."""
VIRT_START = GIB
VIRT_BELOW = 4 * MIB
"""How much less than the pool's size lies above a virt's shared region, below 4 GiB."""
VIRT_LEAST = 6 * GIB + 256 * MIB
"""So much that a virt has more memory above 4 GiB than below, where it has 3 GiB.

Else Linux would lend the ring area (see `kernel_words.LEND_NOTHING`).  A sixty-fourth
of all memory, for the structures of pages, comes from above.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the master's memory: one memory backend and one NUMA node of QEMU's.

    The guest's kernel sees no nodes (numa=off).
    """

    name: str
    start: int
    """Its guest address."""
    size: int

    @property
    def is_shared(self) -> bool:
        """Whether the slave has it."""
        return self.name == SHARED

    @property
    def end(self) -> int:
        """The guest address behind it."""
        return self.start + self.size

    @property
    def addresses(self) -> range:
        """All its guest addresses."""
        return range(self.start, self.end)


SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory of a confined master."""

    machine: Machine
    pool: int
    """Bytes of the bounce pool, the lower part of the shared region."""
    parts: tuple[Part, ...]
    """All of it, in the order of the addresses."""

    def part(self, name: str) -> Part:
        """Return the part of this name."""
        return next(one for one in self.parts if one.name == name)

    @property
    def below_4g(self) -> int:
        """Bytes of a q35's memory below 4 GiB."""
        return self.part("boot").end

    @property
    def rings(self) -> int:
        """The guest address of the ring area."""
        return self.part(SHARED).start + self.pool

    @property
    def processors(self) -> int:
        """How many the master may have: for more, Linux makes the pool larger."""
        # kernel/dma/swiotlb.c, round_up_default_nslabs()
        return self.pool // AREA

    def initrd_limits(self) -> tuple[int, int]:
        """Return how large a q35's initrd may be, with a BIOS and with EFI.

        A larger one comes to lie in the shared region.  Both are a little less than
        what was seen with GRUB 2.12 and 2.14 (docs/confined.md, "Booting").
        """
        boot = self.part("boot")
        # GRUB's highest address for it is LOW_END less twice its size
        # (grub_cmd_initrd() takes it away, grub_relocator_alloc_chunk_align() again).
        twice = (LOW_END - boot.start) // 2
        return min(twice, boot.size - BIOS_NEEDS), max(0, boot.size - EFI_NEEDS)

    def kernel_words(self) -> str:
        """Return the words of the master's kernel."""
        shared = self.part(SHARED)
        # An aarch64's kernel does not know the word for the memory of loaders.
        boot = self.part("boot").addresses if self.machine is Machine.Q35 else None
        pool, rings = (shared.start, self.rings), (self.rings, shared.end)
        return " ".join(kernel_words(range(*pool), range(*rings), boot))


def pool_for(ring_entries: int) -> int:
    """Return the pool that is never too small for a card with such rings.

    A full transmit ring of the largest packets, and a receive ring of pages.
    """
    needed = ring_entries * (SLOTS_OF_PACKET + 2) * SLOT
    return 1 << (needed - 1).bit_length()


def layout(memory: int, pool: int, machine: Machine, *, attached: bool) -> Layout:
    """Return the layout of a master's memory.

    Args:
        memory: all of the master's memory, in bytes.
        pool: the bounce pool's size.
        machine: QEMU's machine.
        attached: whether the master brings the shared region (attach mode).

    Raises:
        HostError: there is none for so much memory and such a pool.
    """
    make = _q35 if machine is Machine.Q35 else _virt
    parts = make(memory, pool, ring_area(pool, attached=attached))
    return Layout(machine, pool, tuple(parts))


def _boot(memory: int, shared: int) -> int:
    """Return the size of the memory that only firmware and loaders use.

    They have the highest memory below 4 GiB: SeaBIOS its tables and at most 16 MiB
    (malloc_preinit), QEMU the initrd of -kernel, OVMF 64 MiB and its page tables
    (GetPeiMemoryCap), GRUB its heap.  It must take all of that, or the rest comes to
    lie in the shared region (see `Layout.initrd_limits`).  Linux could use it, but
    would put its bounce pool there if it did.  On the hypervisor only what was touched
    takes memory.
    """
    sizes = (size for least, size in _BOOT if memory >= least)
    largest = next(sizes)
    if largest > _BOOT_OF_MOST and LOW + shared + largest > LOW_END:
        return _BOOT_OF_MOST
    return largest


_BOOT_OF_MOST = 256 * MIB
"""With 128 MiB, GRUB had an initrd of 60 MB partly in the shared region (OVMF)."""
_BOOT = ((8 * GIB, 512 * MIB), (GIB, _BOOT_OF_MOST), (0, 64 * MIB))


def _q35(memory: int, pool: int, rings: int) -> Iterator[Part]:
    shared = pool + rings
    boot = _boot(memory, shared)
    high = memory - LOW - shared - boot
    # What may be used above 4 GiB must be more than what may be below, so that nothing
    # of that is lent.  GRUB 2.06 for EFI has its heap, a quarter of all, at the end of
    # the largest piece.
    if high < LOW + rings:
        least = 2 * LOW + rings + shared
        least += _boot(least + boot, shared)
        raise HostError(_too_small(memory, shared, least, Machine.Q35), code="H151")
    yield Part("low", 0, LOW)
    yield Part(SHARED, LOW, shared)
    yield Part("boot", LOW + shared, boot)
    yield Part("high", 4 * GIB, high)


def _virt(memory: int, pool: int, rings: int) -> Iterator[Part]:
    # Its memory is in one piece, and firmware and loaders use its beginning: QEMU has
    # kernel, initrd and devicetree within 128 MiB and a little (hw/arm/boot.c).  With
    # MOST_POOL it has 2.25 GiB.  There is no memmap= here, so what is above the region
    # must be smaller than the pool.
    if memory < VIRT_LEAST:
        raise HostError(
            _too_small(memory, pool + rings, VIRT_LEAST, Machine.VIRT), code="H152"
        )
    end = 4 * GIB - (pool - VIRT_BELOW)
    start = end - pool - rings
    yield Part("low", VIRT_START, start - VIRT_START)
    yield Part(SHARED, start, end - start)
    yield Part("high", end, VIRT_START + memory - end)


def _too_small(memory: int, shared: int, least: int, machine: Machine) -> str:
    return (
        f"memory {memory // MIB}M is too small for a confined master on {machine} with "
        f"a shared region of {shared // MIB}M: give it {least // MIB}M or more"
    )
