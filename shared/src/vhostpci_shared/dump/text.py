# SPDX-License-Identifier: Apache-2.0
"""The dump as tables for people; what is wrong stands at its place."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..terminal import Styled, Terminal

Json = dict[str, Any]

_HEXADECIMAL = frozenset(
    (
        *("guest_addr", "offset", "desc", "driver", "device", "addr"),
        *("length", "instance", "session", "origin", "undo"),
    )
)
"""Fields that are addresses, or numbers that mean nothing by themselves."""


def lines(report: Json, terminal: Terminal) -> Iterator[str]:
    """Yield the lines of a whole dump."""
    metadata = report["metadata"]
    if not report["consistent"]:
        mixed = "the daemon wrote the metadata while it was copied: it may be mixed"
        yield from _wrong(terminal, mixed)
    for title in ("header", "device"):
        yield from _fields(terminal, title, metadata[title])
    # A device that is not confined has only zeros there.
    if metadata["confined"]["shared"]:
        yield from _fields(terminal, "confined", metadata["confined"])
    yield from _table(terminal, "regions", metadata["regions"])
    places, others = _halves(metadata["rings"], "base")
    yield from _table(terminal, "rings", places)
    yield from _table(terminal, "rings: start and signals", others)
    yield from _fields(terminal, "agent", metadata["agent"])
    yield from _table(terminal, "agent rings", metadata["agent_rings"])
    # A split ring has no position.
    positions = [one if one["origin"] else None for one in metadata["positions"]]
    yield from _table(terminal, "positions", positions)
    for problem in metadata["problems"]:
        yield from _wrong(terminal, problem)
    for ring in report["rings"]:
        yield ""
        yield from _ring(terminal, ring)


def _halves(entries: Sequence[Json], field: str) -> tuple[list[Json], list[Json]]:
    """Return the fields before one, and those from it on."""
    first, second = [], []
    for entry in entries:
        names = list(entry)
        at = names.index(field)
        first.append({name: entry[name] for name in names[:at]})
        second.append({name: entry[name] for name in names[at:]})
    return first, second


def _wrong(terminal: Terminal, text: str, indent: int = 0) -> list[str]:
    return terminal.wrapped(Styled(f"! {text}", "bad"), indent=indent)


def _fields(terminal: Terminal, title: str, entry: Json) -> Iterator[str]:
    yield terminal.paint(Styled(title, "head"))
    yield from terminal.fields((name, _show(name, one)) for name, one in entry.items())


def _table(
    terminal: Terminal, title: str, entries: Sequence[Json | None]
) -> Iterator[str]:
    """Yield a table of entries, each with its number; None is left out."""
    there = [(index, one) for index, one in enumerate(entries) if one is not None]
    if not there:
        return
    yield terminal.paint(Styled(title, "head"))
    names = list(there[0][1])
    yield from terminal.table(
        [
            [str(index), *(_show(name, one[name]) for name in names)]
            for index, one in there
        ],
        ["#", *names],
        indent=2,
        right=[
            place
            for place, name in enumerate(["#", *names])
            if name == "#" or isinstance(there[0][1][name], int)
        ],
    )


def _show(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, int) and name in _HEXADECIMAL:
        return f"{value:#x}"
    return str(value)


def _ring(terminal: Terminal, ring: Json) -> Iterator[str]:
    title = f"ring {ring['index']} ({ring['queue']})"
    if "format" in ring:
        title += f", {ring['format']}, {ring['size']} entries"
    yield terminal.paint(Styled(title, "head"))
    if ring["problem"]:
        yield from _wrong(terminal, ring["problem"], 2)
        return
    if ring["moved"]:
        moved = "it moved while it was copied: what follows may be mixed"
        yield from _wrong(terminal, moved, 2)
    yield from terminal.fields(_areas(ring))
    for problem in ring["problems"]:
        yield from _wrong(terminal, problem, 2)
    yield from _descriptors(terminal, ring.get("descriptors", ()))


def _areas(ring: Json) -> Iterator[tuple[str, str]]:
    """Yield what is known of a ring's parts, other than its descriptors."""
    for name in ("avail", "used", "driver_event", "device_event", "position"):
        if (area := ring.get(name)) is not None:
            words = (f"{k}={_show(k, v)}" for k, v in area.items() if k != "last")
            yield name, " ".join(words)
    if "used" in ring:
        last = " ".join(f"{one['id']}:{one['len']}" for one in ring["used"]["last"])
        yield "last used", f"{last}  (id:bytes, the newest last)".lstrip()
        yield "pending", f"{len(ring['pending'])} chains"


_COLUMNS = ("#", "addr", "len", "next", "id", "flags", "chain", "state", "place")


def _descriptors(terminal: Terminal, found: Iterable[Json]) -> list[str]:
    """Return a table of descriptors; those of an indirect table are set in."""
    rows = [row for one in found for row in _rows(one, "")]
    # Columns without any cell are for rings of the other format.
    used = [n for n in range(len(_COLUMNS)) if any(row[n] for row in rows)]
    names = [_COLUMNS[n] for n in used]
    numbers = [at for at, name in enumerate(names) if name in ("len", "next", "id")]
    cells = [[row[n] for n in used] for row in rows]
    return terminal.table(cells, names, indent=2, right=numbers)


def _rows(one: Json, indent: str) -> Iterator[list[str]]:
    chain = one.get("chain")
    problem, place = one.get("problem"), one.get("place") or ""
    yield [
        f"{indent}{one['index']}",
        f"{one['addr']:#x}",
        str(one["len"]),
        *(str(one.get(name, "")) for name in ("next", "id")),
        " ".join(one["flags"]) or "-",
        "" if chain is None else str(chain),
        "available" if one.get("available") else "",
        Styled(f"{place} ! {problem}".lstrip(), "bad") if problem else place,
    ]
    for inner in one.get("table", ()):
        yield from _rows(inner, indent + "  ")
