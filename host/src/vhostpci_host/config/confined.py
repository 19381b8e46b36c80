# SPDX-License-Identifier: Apache-2.0
"""The shared region of a confined device: what its slave has of the master's memory.

    |  bounce pool (swiotlb)  |  ring area (CMA)  |

All other memory of the master is private.
"""

MIB = 2**20
POOL = 64 * MIB
"""The bounce pool, if the user gives no size."""
LEAST_POOL, MOST_POOL = 16 * MIB, 256 * MIB
"""Linux takes a power of two.

A larger one, with a ring area as large (attach mode), leaves the kernel too little of
the memory below: on a virt QEMU would put kernel, initrd and devicetree into it.
"""
RING_AREA = 16 * MIB
"""The ring area, if the master does not bring the region.

A pair of rings takes half a MiB or less.  But Linux takes 1/8192 of its memory, and 4
MiB at most, from there for each of two other pools, or three on aarch64
(kernel/dma/pool.c).  With 16 GiB, nothing of 4 MiB was left for the rings.
"""

CARD = (
    # Its driver uses the DMA API, and so the bounce pool.  QEMU takes that without an
    # IOMMU only for a card that is modern only.
    ("iommu_platform", True),
    ("disable-legacy", True),
    ("ctrl_guest_offloads", False),
    # QEMU itself serves the control queue, and has all memory: a slave could change a
    # descriptor, and QEMU would write there.  Linux refuses a card with one of the
    # others but without the queue.
    ("ctrl_vq", False),
    ("ctrl_rx", False),
    ("ctrl_vlan", False),
    ("ctrl_rx_extra", False),
    ("ctrl_mac_addr", False),
    ("guest_announce", False),
)
"""The properties of a confined master's card."""


def ring_area(pool: int, *, attached: bool) -> int:
    """Return the size of the ring area beside a bounce pool of `pool` bytes.

    Args:
        pool: the bounce pool's size.
        attached: whether the master brings the shared region (attach mode).
    """
    # In attach mode the region is a whole file, and the BAR of a slave VM, whose size
    # is a power of two.  An arena is padded to such a size.
    return pool if attached else RING_AREA


def shared_region(pool: int, *, attached: bool) -> int:
    """Return the size of the shared region; the arguments are those of `ring_area`."""
    return pool + ring_area(pool, attached=attached)
