# SPDX-License-Identifier: Apache-2.0
"""What `audit` finds in windows, and what it says of it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from vhostpci_guest import status_socket
from vhostpci_guest.cli import audit
from vhostpci_guest.cli.audit import PAGE, WHAT, lines, marks, search
from vhostpci_guest.cli.main import main
from vhostpci_guest.serve.questions import MOST

PASSWD = (
    b"root:x:0:0:root:/root:/bin/bash\nmail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n"
)
TABLE = struct.pack("<64Q", *(at << 12 | 0x8000000000000063 for at in range(1, 65)))
PAGES = {
    "elf": b"\x7fELF\x02\x01\x01",
    "kernel": b"\0\0Linux version 6.1.0 (x@y)",
    "passwd": b"\0\n" + PASSWD,
    "page_tables": TABLE,
    "text": b"All work and no play. " * 200,
}
LINK: dict[str, Any] = {
    "pid": 7,
    "name": "web",
    "tap": "web",
    "device": "0000:00:05.0",
    "confined": {"shared": 80 << 20, "memory": 1676 << 20},
    "window_size": 64 * PAGE,
    "windows": [],
}


def page(data: bytes) -> bytes:
    return data[:PAGE].ljust(PAGE, b"\0")


def always() -> bool:
    return True


@pytest.mark.parametrize("mark", WHAT)
def test_a_mark_is_found_alone(mark: str) -> None:
    assert list(marks(page(PAGES[mark]))) == [mark]


def test_zeros_and_a_packet_have_no_mark() -> None:
    ethernet = bytes.fromhex("525400123456525400abcdef080045000054") + bytes(range(64))
    assert list(marks(page(b""))) == []
    assert list(marks(page(ethernet))) == []
    # An avail ring: small numbers, which are no addresses.
    assert list(marks(page(struct.pack("<512H", *range(512))))) == []


def test_all_pages_of_all_windows_are_searched_once() -> None:
    memory = {0: page(b"") * 9, 3: page(PAGES["elf"]) * 2 + page(PAGES["text"])}
    asked = []

    def read(window: int, offset: int, length: int) -> bytes:
        asked.append(length)
        return memory[window][offset : offset + length]

    found = search(read, [(0, 9 * PAGE), (3, 3 * PAGE)], always)
    assert found == {
        **dict.fromkeys(WHAT, 0),
        "pages": 12,
        "searched": 12,
        "zero": 9,
        "other": 3,
        "elf": 2,
        "text": 1,
    }
    assert sum(asked) == 12 * PAGE
    assert max(asked) <= MOST


def test_it_ends_when_the_time_is_over() -> None:
    def read(window: int, offset: int, length: int) -> bytes:
        del window, offset
        return bytes(length)

    found = search(read, [(0, 10 * MOST)], lambda: False)
    assert (found["searched"], found["pages"]) == (MOST // PAGE, 10 * MOST // PAGE)


class Windows:
    """Windows in which each page is the same."""

    data = b""

    def __init__(self, link: dict[str, Any]) -> None:
        assert link["name"] == "web"

    def read(self, window: int, offset: int, length: int) -> bytes:
        assert window == 0
        assert offset + length <= LINK["window_size"] - 16 * PAGE
        return page(self.data) * (length // PAGE)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The status that the agent gives."""
    link = dict(LINK)
    monkeypatch.setattr(status_socket, "ask", lambda: ([link], []))
    monkeypatch.setattr(audit, "AgentWindows", Windows)
    return link


@pytest.mark.parametrize(("mark", "status"), [("kernel", 1), ("text", 0)])
def test_what_should_not_be_there_is_status_1(
    agent: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mark: str,
    status: int,
) -> None:
    monkeypatch.setattr(Windows, "data", PAGES[mark])
    try:
        ended = main(["audit", "web", "-j"])
    except SystemExit as why:
        ended = int(str(why))
    found = json.loads(capsys.readouterr().out)
    assert ended == status
    assert found["confined"] == agent["confined"]
    assert (found["searched"], found[mark], found["zero"]) == (48, 48, 0)


@pytest.mark.parametrize("mark", [None, "kernel"])
def test_search_of_a_part_is_status_1_whatever_it_has_found(
    agent: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    mark: str | None,
) -> None:
    """What it has found by then is printed all the same."""
    agent["window_size"] = 16 * PAGE + 2 * MOST
    monkeypatch.setitem(LINK, "window_size", agent["window_size"])
    monkeypatch.setattr(Windows, "data", PAGES[mark] if mark else b"")
    assert main(["audit", "web", "-j", "--seconds", "0"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["searched"] == found["pages"] // 2 == MOST // PAGE
    assert not mark or found[mark] == found["searched"]
    assert "web: 4 of the 8 pages were searched in 0 s: give it more" in caplog.text


def test_an_ordinary_device_has_the_whole_memory(
    agent: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent["confined"] = None
    monkeypatch.setattr(Windows, "data", PAGES["elf"])
    assert main(["audit", "web"]) == 0
    said = capsys.readouterr().out
    assert "not confined" in said
    assert "48 begin as a program" in said


def test_a_device_without_memory_is_refused(agent: dict[str, Any]) -> None:
    agent["window_size"] = 16 * PAGE
    assert main(["audit", "web"]) == 1


# What was found with a master that had kept secrets, in its memory and in files.
FOUND = {
    "confined": {
        "confined": LINK["confined"],
        **dict.fromkeys(WHAT, 0),
        "pages": 32752,
        "searched": 32752,
        "zero": 16365,
        "other": 16387,
    },
    "ordinary": {
        "confined": None,
        **dict(zip(WHAT, (163, 3, 1, 83, 1505), strict=True)),
        "pages": 524272,
        "searched": 524272,
        "zero": 453130,
        "other": 71142,
    },
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_it_says_looks_like_this(kind: str) -> None:
    found = {"name": "web", **FOUND[kind]}
    golden.check(Path(__file__).parent / f"golden/audit-{kind}.txt", lines(found))
