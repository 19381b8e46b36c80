# SPDX-License-Identifier: Apache-2.0
"""The metadata's entries as JSON, each field by its name in docs/metadata.md.

Whatever the bytes are, each field is shown; what a reader of version 1 would refuse is
said beside it.
"""

from collections.abc import Callable
from dataclasses import fields
from enum import IntEnum, IntFlag
from typing import Any

from .. import metadata as md
from ..position import Position
from ..virtio import Feature, names
from ..wire import ProtocolError

Json = dict[str, Any]

Kind = (
    type[md.Header]
    | type[md.Device]
    | type[md.Confined]
    | type[md.Region]
    | type[md.Ring]
    | type[md.Agent]
    | type[md.AgentRing]
    | type[Position]
)

FLAGS: dict[tuple[type, str], type[IntFlag]] = {
    (md.Device, "features"): Feature,
    (md.Device, "flags"): md.DeviceFlag,
    (md.Ring, "flags"): md.RingFlag,
    (md.Agent, "flags"): md.AgentFlag,
    (md.Agent, "offers"): Feature,
}
STATES: dict[tuple[type, str], type[IntEnum]] = {
    (md.Agent, "state"): md.AgentState,
    (md.AgentRing, "state"): md.AgentRingState,
}


def entry(kind: Kind, data: bytes) -> Json:
    """Return all fields of one entry, whose length the caller has checked."""
    labels = [field.name for field in fields(kind)]
    values = kind.layout.unpack(data)
    return {
        name: _value(kind, name, value)
        for name, value in zip(labels, values, strict=True)
    }


def _value(kind: type, name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return md.safe_text(value)
    if flags := FLAGS.get((kind, name)):
        return names(flags(value))
    if states := STATES.get((kind, name)):
        return next((s.name for s in states if s == value), f"state {value}")
    return value


def describe(data: bytes) -> Json:
    """Return the whole metadata region as JSON.

    Args:
        data: a copy of it, `metadata.SIZE` bytes.
    """
    problems: list[str] = []
    device = _checked("device", md.Device, data, md.DEVICE, problems)
    regions = min(device["region_count"], md.MAX_REGIONS)
    rings = min(device["ring_count"], md.MAX_RINGS)

    def table(title: str, kind: Kind, start: int, count: int) -> list[Json]:
        size = kind.layout.size
        return [
            _checked(f"{title} {n}", kind, data, start + n * size, problems)
            for n in range(count)
        ]

    return {
        "header": _checked("header", md.Header, data, md.HEADER, problems),
        "device": device,
        "confined": _checked("confined", md.Confined, data, md.CONFINED, problems),
        "regions": table("region", md.Region, md.REGIONS, regions),
        "rings": table("ring", md.Ring, md.RINGS, rings),
        "agent": _checked("agent", md.Agent, data, md.AGENT, problems),
        "agent_rings": table("agent ring", md.AgentRing, md.AGENT_RINGS, rings),
        "positions": table("position", Position, md.POSITIONS, rings),
        "problems": problems,
    }


def _checked(
    title: str, kind: Kind, data: bytes, start: int, problems: list[str]
) -> Json:
    """Return an entry; note what a reader of version 1 would refuse in it."""
    piece = data[start : start + kind.layout.size]
    parse: Callable[[bytes], object] = kind.parse
    try:
        parse(piece)
    except ProtocolError as why:
        problems.append(f"{title}: {why}")
    return entry(kind, piece)
