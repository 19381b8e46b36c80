# SPDX-License-Identifier: Apache-2.0
"""Where a packed ring stands: in its memory there is no index that says it.

The agent keeps each ring's position in the metadata, which survives the agent and, with
the arena, the daemon.  When a front-end connects again, QEMU sends the base of the last
GET_VRING_BASE, or that of a new ring, although the ring has been worked since: it
cannot read another one from the ring.  So `choose` looks at what the agent has left,
and at the ring.
"""

from vhostpci_shared import packed
from vhostpci_shared.position import Position

from .vring import Areas


def of_ring(entry: Position, areas: Areas, size: int) -> Position | None:
    """Return what an agent has left, if it is about this very ring; else None."""
    place = areas.desc, areas.driver, areas.device, size
    return entry if entry.valid and entry.place == place else None


def choose(base: int, entry: Position | None, descriptors: bytes) -> int | None:
    """Return where a ring of a new connection goes on; None if nothing says it.

    Args:
        base: what the front-end says.
        entry: what an agent has left of this ring; None: nothing.
        descriptors: the whole ring.
    """
    # User Mode Linux says 0, as for a split ring; a new ring cannot stand there.
    if base in (packed.START, 0) and packed.is_new(descriptors):
        return packed.START  # the driver was loaded since
    if entry is None:
        return None
    at = entry.resolve(packed.flags_at(descriptors, entry.at))
    if not _is_used(descriptors, at):
        return at
    # QEMU itself has worked the ring from there on, and knows where it stands: without
    # a back-end, it drops what the driver sends.
    if base != packed.START and not _is_used(descriptors, base):
        return base
    return None


def _is_used(descriptors: bytes, position: int) -> bool:
    """Whether a ring cannot go on at a position: it is used, or outside the ring."""
    if packed.DESC_SIZE * packed.index(position) >= len(descriptors):
        return True
    return packed.is_used(packed.flags_at(descriptors, position), position)
