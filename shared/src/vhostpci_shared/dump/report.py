# SPDX-License-Identifier: Apache-2.0
"""The whole dump of one device: its metadata, and the rings that are asked for."""

from collections.abc import Sequence
from struct import unpack
from typing import Any

from .. import metadata as md
from ..position import Position
from ..wire import ProtocolError
from . import fields, packed_ring, split_ring
from .guest_memory import GuestMemory, Unreadable, Windows

Json = dict[str, Any]

_TRIES = 16
"""Copies of the metadata, until one is not changed meanwhile."""


def dump(windows: Windows, ring: int | None = None) -> Json:
    """Return everything that a device's windows say, as JSON.

    Args:
        windows: the device's, of which window 0 has the metadata.
        ring: the ring whose descriptors are wanted; None: of none.

    Raises:
        Unreadable: there is no metadata region, or no such ring.
    """
    data, consistent = _metadata(windows)
    metadata = fields.describe(data)
    rings = _rings(data, metadata["device"]["ring_count"])
    wanted: Sequence[int] = range(len(rings)) if ring is None else [ring]
    if ring is not None and not 0 <= ring < len(rings):
        raise Unreadable(
            f"no ring {ring}; there are {len(rings)}, from 0 on", code="S016"
        )
    memory = GuestMemory(_regions(data, metadata["device"]["region_count"]), windows)
    found = [_ring(n, rings[n], memory, windows) for n in wanted]
    if ring is None:
        for one in found:
            one.pop("descriptors", None)
    return {"metadata": metadata, "consistent": consistent, "rings": found}


def _metadata(windows: Windows) -> tuple[bytes, bool]:
    """Return a copy of the region, and whether no daemon wrote it meanwhile."""
    size = windows.size(md.SLAVE_ID)
    if size is None or size < md.SIZE:
        raise Unreadable(
            "window 0 is not there, or has no room for the metadata", code="S017"
        )
    start = size - md.SIZE
    data = b""
    for _ in range(_TRIES):
        before = _generation(windows, start)
        data = windows.read(md.SLAVE_ID, start, md.SIZE)
        if before % 2 == 0 and _generation(windows, start) == before:
            return data, True
    return data, False


def _generation(windows: Windows, start: int) -> int:
    word = windows.read(md.SLAVE_ID, start + md.GENERATION_OFFSET, 8)
    value: int = unpack("<Q", word)[0]
    return value


def _regions(data: bytes, count: int) -> list[md.Region]:
    """Return the regions that make sense; `fields.describe` says which do not."""
    found = []
    for piece in _table(data, md.REGIONS, md.Region.layout.size, count, md.MAX_REGIONS):
        try:
            found.append(md.Region.parse(piece))
        except ProtocolError:
            continue
    return found


def _rings(data: bytes, count: int) -> list[md.Ring | str]:
    """Return the rings, and a text for each that makes no sense."""
    found: list[md.Ring | str] = []
    for piece in _table(data, md.RINGS, md.Ring.layout.size, count, md.MAX_RINGS):
        try:
            found.append(md.Ring.parse(piece))
        except ProtocolError as why:
            found.append(str(why))
    return found


def _table(data: bytes, start: int, size: int, count: int, most: int) -> list[bytes]:
    places = (start + n * size for n in range(min(count, most)))
    return [data[at : at + size] for at in places]


def _ring(
    index: int, ring: md.Ring | str, memory: GuestMemory, windows: Windows
) -> Json:
    # VIRTIO, "Network Device", "Virtqueues": even numbers are receive queues.
    found: Json = {
        "index": index,
        "queue": f"{'tx' if index % 2 else 'rx'}{index // 2}",
    }
    if isinstance(ring, str):
        return {**found, "problem": ring}
    is_packed = bool(ring.flags & md.RingFlag.PACKED)
    found |= {"format": "packed" if is_packed else "split", "size": ring.size}
    if not ring.flags & md.RingFlag.STARTED:
        return {**found, "problem": "the master's driver has not started it"}
    try:
        if is_packed:
            there = packed_ring.describe(
                ring, memory, lambda: _position(windows, index)
            )
        else:
            there = split_ring.describe(ring, memory)
    except Unreadable as why:
        return {**found, "problem": str(why)}
    return {**found, "problem": "", **there}


def _position(windows: Windows, index: int) -> Position:
    size = windows.size(md.SLAVE_ID) or md.SIZE
    length = Position.layout.size
    start = size - md.SIZE + md.POSITIONS + index * length
    return Position.parse(windows.read(md.SLAVE_ID, start, length))
