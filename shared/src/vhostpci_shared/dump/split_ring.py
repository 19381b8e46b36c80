# SPDX-License-Identifier: Apache-2.0
"""A split virtqueue (VIRTIO, "Split Virtqueues"), copied once and then decoded."""

from struct import Struct, unpack_from
from typing import Any

from .. import metadata as md
from ..virtio import AVAIL_ENTRY, DESC_SIZE, RING_EXTRA, USED_ENTRY
from .descriptors import INDIRECT, NEXT, SPLIT, Tables, buffer, flag_names
from .guest_memory import GuestMemory, Unreadable

Json = dict[str, Any]

_HEAD = Struct("<HH")  # flags, idx
LAST_USED = 8
"""Entries of the used ring that are shown, the newest last."""


def describe(ring: md.Ring, memory: GuestMemory) -> Json:
    """Return what the ring holds now, and what is wrong with it.

    Raises:
        Unreadable: one of its three areas cannot be read.
    """
    num = ring.size
    if num & (num - 1):
        raise Unreadable(f"a size of {num} is no power of two", code="S018")
    used = memory.read(ring.device, RING_EXTRA + num * USED_ENTRY)
    avail = memory.read(ring.driver, RING_EXTRA + num * AVAIL_ENTRY)
    table = memory.read(ring.desc, num * DESC_SIZE)
    after = (
        memory.read(ring.driver, _HEAD.size),
        memory.read(ring.device, _HEAD.size),
    )
    moved = after != (avail[: _HEAD.size], used[: _HEAD.size])
    problems: list[str] = []
    pending = _pending(num, avail, used, problems)
    return {
        "moved": moved,
        "avail": _area(avail, "NO_INTERRUPT", "used_event"),
        "used": {
            **_area(used, "NO_NOTIFY", "avail_event"),
            "last": _last_used(num, used),
        },
        "pending": pending,
        "descriptors": _descriptors(num, table, pending, memory, problems),
        "problems": problems,
    }


def _area(data: bytes, flag: str, event: str) -> Json:
    flags, index = _HEAD.unpack_from(data)
    (word,) = unpack_from("<H", data, len(data) - 2)
    return {"flags": [flag] if flags & 1 else [], "idx": index, event: word}


def _pending(num: int, avail: bytes, used: bytes, problems: list[str]) -> list[int]:
    """Return the heads that are available and not used yet, the oldest first."""
    (_, until), (_, since) = _HEAD.unpack_from(avail), _HEAD.unpack_from(used)
    count = (until - since) % 2**16
    if count > num:
        problems.append(
            f"avail idx {until} is {count} ahead of used idx {since}, and the ring has "
            f"{num} entries"
        )
        return []
    return [
        unpack_from("<H", avail, _HEAD.size + AVAIL_ENTRY * ((since + n) % num))[0]
        for n in range(count)
    ]


def _last_used(num: int, used: bytes) -> list[Json]:
    _, until = _HEAD.unpack_from(used)
    found = []
    for index in range(until - min(LAST_USED, num), until):
        at = _HEAD.size + USED_ENTRY * (index % num)
        ident, length = unpack_from("<II", used, at)
        found.append({"id": ident, "len": length})
    return found


def _descriptors(
    num: int,
    table: bytes,
    pending: list[int],
    memory: GuestMemory,
    problems: list[str],
) -> list[Json]:
    """Return all descriptors; those of pending chains with what they lead to."""
    heads = _chains(num, table, pending, problems)
    tables = Tables(memory, packed=False)
    found = []
    for index in range(num):
        address, length, flags, after = SPLIT.unpack_from(table, index * DESC_SIZE)
        one: Json = {
            "index": index,
            "addr": address,
            "len": length,
            "flags": flag_names(flags),
            "next": after,
            "chain": heads.get(index),
        }
        # The driver need not clear a descriptor that is free: what it says is old.
        if index in heads:
            one |= buffer(memory, address, length)
            if flags & INDIRECT:
                one["table"], one["problem"] = tables.read(address, length)
        found.append(one)
    return found


def _chains(
    num: int, table: bytes, pending: list[int], problems: list[str]
) -> dict[int, int]:
    """Return the head of each descriptor that is in a pending chain."""
    heads: dict[int, int] = {}
    for head in pending:
        index, more = head, True
        while more:
            if index >= num:
                problems.append(f"chain {head}: descriptor {index} is past the table")
                break
            if index in heads:
                problems.append(
                    f"chain {head}: descriptor {index} is in chain {heads[index]}, too"
                )
                break
            heads[index] = head
            _, _, flags, after = SPLIT.unpack_from(table, index * DESC_SIZE)
            index, more = after, bool(flags & NEXT)
    return heads
