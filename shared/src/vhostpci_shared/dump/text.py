# SPDX-License-Identifier: Apache-2.0
"""The dump as lines for people; what is wrong stands at its place."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_HEXADECIMAL = frozenset(
    (
        *("guest_addr", "offset", "desc", "driver", "device", "addr"),
        *("length", "instance", "session", "origin", "undo"),
    )
)
"""Fields that are addresses, or numbers that mean nothing by themselves."""


def lines(report: Json) -> Iterator[str]:
    """Yield the lines of a whole dump."""
    metadata = report["metadata"]
    if not report["consistent"]:
        yield "! the daemon wrote the metadata while it was copied: it may be mixed"
    for title in ("header", "device"):
        yield from _fields(title, metadata[title])
    # A device that is not confined has only zeros there.
    if metadata["confined"]["shared"]:
        yield from _fields("confined", metadata["confined"])
    yield from _table("region", metadata["regions"])
    yield from _table("ring", metadata["rings"])
    yield from _fields("agent", metadata["agent"])
    yield from _table("agent ring", metadata["agent_rings"])
    # A split ring has no position.
    yield from _table("position", metadata["positions"], lambda one: one["origin"])
    for problem in metadata["problems"]:
        yield f"! {problem}"
    for ring in report["rings"]:
        yield ""
        yield from _ring(ring)


def _fields(title: str, entry: Json) -> Iterator[str]:
    yield title
    width = max(map(len, entry))
    for name, value in entry.items():
        yield f"  {name:{width}}  {_show(name, value)}".rstrip()


def _table(title: str, entries: list[Json], shown: Any = bool) -> Iterator[str]:
    for index, entry in enumerate(entries):
        if shown(entry):
            text = " ".join(f"{k}={_show(k, v)}" for k, v in entry.items())
            yield f"{title} {index}: {text}"


def _show(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, int) and name in _HEXADECIMAL:
        return f"{value:#x}"
    return str(value)


def _ring(ring: Json) -> Iterator[str]:
    yield f"ring {ring['index']} ({ring['queue']})" + (
        f", {ring['format']}, {ring['size']} entries" if "format" in ring else ""
    )
    if ring["problem"]:
        yield f"  ! {ring['problem']}"
        return
    if ring["moved"]:
        yield "  ! it moved while it was copied: what follows may be mixed"
    for name in ("avail", "used", "driver_event", "device_event", "position"):
        if (area := ring.get(name)) is not None:
            words = (f"{k}={_show(k, v)}" for k, v in area.items() if k != "last")
            yield f"  {name:12}  {' '.join(words)}"
    if "used" in ring:
        last = " ".join(f"{one['id']}:{one['len']}" for one in ring["used"]["last"])
        yield f"  {'last used':12}  {last}  (id:bytes, the newest last)"
        yield f"  {'pending':12}  {len(ring['pending'])} chains"
    for problem in ring["problems"]:
        yield f"  ! {problem}"
    for one in ring.get("descriptors", ()):
        yield from _descriptor(one, "  ")


def _descriptor(one: Json, indent: str) -> Iterator[str]:
    words = [f"{one['index']:5}", f"{one['addr']:#018x}", f"len={one['len']}"]
    words += [f"{name}={one[name]}" for name in ("next", "id") if name in one]
    words.append(" ".join(one["flags"]) or "-")
    if one.get("chain") is not None:
        words.append(f"chain={one['chain']}")
    if one.get("available"):
        words.append("available")
    if one.get("place"):
        words.append(one["place"])
    if one.get("problem"):
        words.append(f"! {one['problem']}")
    yield indent + " ".join(words)
    for inner in one.get("table", ()):
        yield from _descriptor(inner, indent + "      ")
