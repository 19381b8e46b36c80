# SPDX-License-Identifier: Apache-2.0
"""docs/metadata.md is normative: its tables and the Python layouts must agree."""

import re
from dataclasses import fields
from pathlib import Path
from struct import Struct, calcsize
from typing import Any

import pytest

from vhostpci_shared import metadata as md
from vhostpci_shared.about import About
from vhostpci_shared.position import Position

DOCUMENT = Path(__file__).parents[3] / "docs" / "metadata.md"
ROW = re.compile(r"^\| (0x[0-9a-f]+) \| (\S+) \| (\w+) \|")
SIZES = {"u16": 2, "u32": 4, "u64": 8}

ENTRIES: dict[str, Any] = {
    "Header": md.Header,
    "Device": md.Device,
    "Confined": md.Confined,
    "Region": md.Region,
    "Ring": md.Ring,
    "Agent": md.Agent,
    "Agent ring": md.AgentRing,
    "Position": Position,
    "About": About,
}


def documented(title: str) -> list[tuple[str, int, int]]:
    """Return (name, offset, size) of each field in the table under `title`."""
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = (ROW.match(line) for line in section.splitlines())
    return [(row[3], int(row[1], 16), width(row[2])) for row in rows if row]


def width(kind: str) -> int:
    text = re.fullmatch(r"char\[(\d+)\]", kind)
    return int(text[1]) if text else SIZES[kind]


def laid_out(layout: Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of each field that a layout packs, padding left out."""
    found, at = [], 0
    for code in re.findall(r"\d*[a-zA-Z]", layout.format[1:]):
        count = int(code[:-1] or 1)
        if code.endswith("s"):
            found.append((at, count))
        elif not code.endswith("x"):
            size = calcsize("<" + code[-1])
            found += [(at + i * size, size) for i in range(count)]
        at += calcsize("<" + code)
    return found


@pytest.mark.parametrize("title", ENTRIES)
def test_document_and_layout_agree_on_every_field(title: str) -> None:
    rows = documented(title)
    assert rows, f"no table under {title}"
    assert [row[1:] for row in rows] == laid_out(ENTRIES[title].layout)


@pytest.mark.parametrize("title", ENTRIES)
def test_document_and_dataclass_agree_on_the_names(title: str) -> None:
    names = [field.name for field in fields(ENTRIES[title])]
    assert [row[0] for row in documented(title)] == names


def test_tables_lie_where_the_document_says_and_do_not_overlap() -> None:
    text = DOCUMENT.read_text()
    ends: list[int] = []
    tables: tuple[tuple[int, int, Any], ...] = (
        (md.HEADER, 1, md.Header),
        (md.DEVICE, 1, md.Device),
        (md.CONFINED, 1, md.Confined),
        (md.REGIONS, md.MAX_REGIONS, md.Region),
        (md.RINGS, md.MAX_RINGS, md.Ring),
        (md.AGENT, 1, md.Agent),
        (md.AGENT_RINGS, md.MAX_RINGS, md.AgentRing),
        (md.POSITIONS, md.MAX_RINGS, Position),
        (md.ABOUT, 1, About),
    )
    for offset, count, kind in tables:
        size = f"{count} x " * (count > 1) + f"0x{kind.layout.size:x}"
        assert re.search(rf"\| 0x{offset:04x} \| {size} \|", text)
        assert not ends or ends[-1] <= offset
        ends.append(offset + count * kind.layout.size)
    assert ends[4] <= md.DAEMON_END <= md.AGENT
    assert ends[-1] <= md.SIZE


def test_every_field_is_naturally_aligned() -> None:
    for entry in ENTRIES.values():
        for offset, size in laid_out(entry.layout):
            assert size > 8 or offset % size == 0
