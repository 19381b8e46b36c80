# SPDX-License-Identifier: Apache-2.0
"""A packed virtqueue (VIRTIO, "Packed Virtqueues"), copied once and then decoded."""

from collections.abc import Callable
from struct import unpack
from typing import Any

from .. import metadata as md
from .. import packed
from ..position import Position
from ..virtio import PACKED_EVENT
from .descriptors import INDIRECT, PACKED, Tables, buffer, flag_names
from .guest_memory import GuestMemory

Json = dict[str, Any]

_FLAGS = {packed.AVAIL: "AVAIL", packed.USED: "USED"}
_EVENTS = {0: "ENABLE", 1: "DISABLE", 2: "DESC"}


def describe(
    ring: md.Ring, memory: GuestMemory, position: Callable[[], Position]
) -> Json:
    """Return what the ring holds now, and what is wrong with it.

    Args:
        ring: its entry in the metadata.
        memory: the master's.
        position: reads where the agent says that it stands.

    Raises:
        Unreadable: one of its three areas cannot be read.
    """
    before = position()
    table = memory.read(ring.desc, ring.size * packed.DESC_SIZE)
    driver = memory.read(ring.driver, PACKED_EVENT)
    device = memory.read(ring.device, PACKED_EVENT)
    moved = position() != before
    problems: list[str] = []
    # Of any other ring: an earlier driver's, which had it elsewhere.
    ours = before.valid and before.place[:1] == (ring.desc,)
    if not ours:
        problems.append("the agent does not say where the ring stands")
    return {
        "moved": moved,
        "position": _position(before.at) if ours else None,
        "driver_event": _event(driver),
        "device_event": _event(device),
        "descriptors": _descriptors(ring.size, table, memory),
        "problems": problems,
    }


def _position(at: int) -> Json:
    return {"index": packed.index(at), "wrap": int(bool(at & packed.WRAP))}


def _event(area: bytes) -> Json:
    at, flags = unpack("<HH", area)
    return {"flags": _EVENTS.get(flags, f"flags {flags:#x}"), **_position(at)}


def _descriptors(num: int, table: bytes, memory: GuestMemory) -> list[Json]:
    tables = Tables(memory, packed=True)
    found = []
    for index in range(num):
        address, length, ident, flags = PACKED.unpack_from(
            table, index * packed.DESC_SIZE
        )
        # Different: the driver has made it available.  Equal: used, or never offered.
        available = bool(flags & packed.AVAIL) != bool(flags & packed.USED)
        one: Json = {
            "index": index,
            "addr": address,
            "len": length,
            "id": ident,
            "flags": flag_names(flags, _FLAGS),
            "available": available,
        }
        if available:
            one |= buffer(memory, address, length)
            if flags & INDIRECT:
                one["table"], one["problem"] = tables.read(address, length)
        found.append(one)
    return found
