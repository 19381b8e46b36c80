# SPDX-License-Identifier: Apache-2.0
"""Positions in a packed virtqueue (VIRTIO, "Packed Virtqueues").

A position is the index of a descriptor and, in bit 15, a wrap counter, which is
inverted with each lap around the ring.  This is how vhost-user has it in the lower half
of a base.
"""

WRAP = 1 << 15
START = WRAP
"""Where a driver starts a ring: index 0, wrap counter 1."""

DESC_SIZE = 16
FLAGS_OFFSET = 14
"""Bytes of a descriptor before its flags."""
AVAIL, USED = 1 << 7, 1 << 15
"""Flags: whose the descriptor is, together with the wrap counter."""


def index(position: int) -> int:
    """Return the index of a position's descriptor."""
    return position & ~WRAP


def flags_at(descriptors: bytes, position: int) -> int:
    """Return the flags of a position's descriptor in a copy of the whole ring."""
    at = DESC_SIZE * index(position) + FLAGS_OFFSET
    return int.from_bytes(descriptors[at : at + 2], "little")


def is_used(flags: int, position: int) -> bool:
    """Whether a device has used the descriptor in this lap, and the driver left it."""
    wrap = bool(position & WRAP)
    return bool(flags & AVAIL) == wrap and bool(flags & USED) == wrap


def was_used(flags: int, position: int) -> bool:
    """Whether a descriptor that was available in this lap has been used since.

    The driver may have made it available again, in the next lap: that leaves USED.
    """
    return bool(flags & USED) == bool(position & WRAP)


def is_new(descriptors: bytes) -> bool:
    """Whether no device seems to have used any descriptor of the ring.

    A driver starts with a ring of zeros, and in the first lap sets no USED.  The end of
    an even lap looks the same, and is the same position.
    """
    high_bytes = descriptors[FLAGS_OFFSET + 1 :: DESC_SIZE]
    return not any(byte & USED >> 8 for byte in high_bytes)
