# SPDX-License-Identifier: Apache-2.0
"""The dump decodes what is there, and follows nothing that is out of bounds."""

import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import golden
from tests.fakes.driver import INDIRECT, NEXT, Desc, Machine
from tests.fakes.packed_driver import PackedDriver
from vhostpci_guest import status_socket
from vhostpci_guest.cli.dump import AgentWindows
from vhostpci_host.cli.dump import FileWindows
from vhostpci_shared import metadata as md
from vhostpci_shared.dump import report, text
from vhostpci_shared.dump.guest_memory import Unreadable
from vhostpci_shared.position import Position
from vhostpci_shared.terminal import Terminal
from vhostpci_shared.virtio import Feature

Json = dict[str, Any]
WINDOW = 256
NUM = 8
PIPE = Terminal(None)
GOLDEN = Path(__file__).parent / "golden"


class Windows:
    """A metadata region in window 0, and the master's memory in one window each."""

    def __init__(self, machine: Machine, *rings: md.Ring) -> None:
        self.metadata = bytearray(md.SIZE)
        self._memory = {
            WINDOW + n: region.bytes for n, region in enumerate(machine.memory.regions)
        }
        self.reads: list[tuple[int, int, int]] = []
        self.on_read: Callable[[], None] = lambda: None
        self.put(md.HEADER, md.Header(md.MAGIC, md.VERSION, md.SIZE, 4, 1))
        device = md.Device(
            instance=7,
            features=Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF,
            flags=md.DeviceFlag.MASTER,
            queue_pairs=1,
            vectors=3,
            daemon_peer=1,
            mtu=1500,
            region_count=len(self._memory),
            ring_count=2,
            name="web",
        )
        self.put(md.DEVICE, device)
        for n, region in enumerate(machine.memory.regions):
            entry = md.Region(region.guest_addr, region.size, WINDOW + n, 0)
            self.put(md.REGIONS + n * md.Region.layout.size, entry)
        for n, ring in enumerate(rings):
            self.put(md.RINGS + n * md.Ring.layout.size, ring)

    def contents(self) -> dict[int, bytes]:
        """Return all bytes of all windows."""
        return {md.SLAVE_ID: bytes(self.metadata)} | {
            number: bytes(memory) for number, memory in self._memory.items()
        }

    def show(self, window: int, memory: Any) -> None:
        """Have this window alone, beside the metadata."""
        self._memory = {window: memory}

    def put(self, at: int, entry: object) -> None:
        data = bytes(entry)  # type: ignore[call-overload]
        self.metadata[at : at + len(data)] = data

    def size(self, window: int) -> int | None:
        if window == md.SLAVE_ID:
            return md.SIZE
        return len(self._memory[window]) if window in self._memory else None

    def read(self, window: int, offset: int, length: int) -> bytes:
        size = self.size(window)
        assert size is not None
        assert 0 <= offset <= size - length, "a read out of bounds"
        memory = self._memory.get(window, self.metadata)
        data = bytes(memory[offset : offset + length])
        self.reads.append((window, offset, length))
        self.on_read()
        return data


def entry_of(driver: Any, *, packed: bool = False) -> md.Ring:
    flags = md.RingFlag.STARTED | md.RingFlag.ENABLED
    return md.Ring(
        session=1,
        flags=flags | md.RingFlag.PACKED if packed else flags,
        size=driver.num,
        desc=driver.desc,
        driver=driver.avail,
        device=driver.used,
        base=0,
        kick_vector=1,
        call_peer=0,
        call_vector=0,
    )


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(num=NUM) as machine:
        yield machine


@pytest.fixture
def windows(machine: Machine) -> Windows:
    return Windows(machine, entry_of(machine.rx), entry_of(machine.tx))


def ring_of(windows: Windows, index: int = 1) -> Json:
    (found,) = report.dump(windows, index)["rings"]
    assert isinstance(found, dict)
    return found


def test_metadata_is_shown_by_the_names_of_its_document(windows: Windows) -> None:
    found = report.dump(windows)
    assert found["consistent"]
    metadata = found["metadata"]
    assert metadata["problems"] == []
    assert metadata["device"]["name"] == "web"
    assert metadata["device"]["features"] == ["NET_F_MRG_RXBUF", "F_VERSION_1"]
    assert metadata["device"]["flags"] == ["MASTER"]
    assert metadata["rings"][1]["flags"] == ["STARTED", "ENABLED"]
    assert metadata["agent"]["state"] == "NONE"


def test_fields_that_a_reader_refuses_are_shown_with_the_reason(
    windows: Windows,
) -> None:
    windows.put(md.HEADER, md.Header(md.MAGIC, 9, md.SIZE, 4, 1))
    windows.put(md.AGENT + 0x18, (77).to_bytes(4, "little"))
    metadata = report.dump(windows)["metadata"]
    assert metadata["header"]["version"] == 9
    assert metadata["agent"]["state"] == "state 77"
    assert [one.split(":")[0] for one in metadata["problems"]] == ["header", "agent"]


def test_split_ring_shows_the_chains_that_wait(
    machine: Machine, windows: Windows
) -> None:
    head = machine.tx.send(b"head", b"body")
    table = machine.tx.send(b"one", b"two", indirect=True)
    ring = ring_of(windows)
    assert ring["pending"] == [head, table]
    first, second = (ring["descriptors"][n] for n in (head, head + 1))
    assert (first["len"], first["flags"], first["chain"]) == (4, ["NEXT"], head)
    assert (second["len"], second["chain"], second["problem"]) == (4, head, "")
    assert first["place"].startswith(f"window {WINDOW + 2} + 0x")
    assert [one["len"] for one in ring["descriptors"][table]["table"]] == [3, 3]
    assert not ring["moved"]
    assert ring["problems"] == []


@pytest.mark.parametrize(
    ("desc", "problem"),
    [
        (Desc(0, 16), "0x0 is in no region"),
        (Desc((1 << 32) + (4 << 20) - 8, 16), "is in no region"),
        (Desc(1 << 63, 0xFFFFFFFF), "is in no region"),
        (Desc(1 << 32, 0), "has no length"),
        (Desc(1 << 32, 24, INDIRECT), "a table of 24 bytes is none"),
        (Desc((1 << 32) + (4 << 20) - 16, 32, INDIRECT), "reaches beyond its region"),
        (Desc(5, 16, INDIRECT), "the table: 0x5 is in no region"),
    ],
)
def test_out_of_bounds_is_said_and_not_read(
    machine: Machine, windows: Windows, desc: Desc, problem: str
) -> None:
    machine.tx.hand_over(desc)
    ring = ring_of(windows)
    (head,) = ring["pending"]
    assert problem in ring["descriptors"][head]["problem"]


def test_buffer_may_span_adjacent_regions(machine: Machine, windows: Windows) -> None:
    machine.tx.hand_over(Desc(0x10000 + (1 << 20) - 4, 8))
    ring = ring_of(windows)
    assert ring["descriptors"][ring["pending"][0]]["problem"] == ""


@pytest.mark.parametrize(
    ("next_", "problem"), [(0, "is in chain 0, too"), (NUM, "is past the table")]
)
def test_chain_without_an_end_ends(
    machine: Machine, windows: Windows, next_: int, problem: str
) -> None:
    machine.tx.hand_over(Desc(1 << 32, 4, NEXT, next_))
    ring = ring_of(windows)
    assert any(problem in one for one in ring["problems"])


def test_table_in_a_table_is_not_followed(machine: Machine, windows: Windows) -> None:
    table = machine.memory.allocate(16)
    machine.tx.put_table(table, Desc(table, 16, INDIRECT))
    machine.tx.hand_over(Desc(table, 16, INDIRECT))
    ring = ring_of(windows)
    (inner,) = ring["descriptors"][ring["pending"][0]]["table"]
    assert inner["problem"] == "a table in a table: not followed"


def test_impossible_idx_is_said(machine: Machine, windows: Windows) -> None:
    machine.tx.publish(1000)
    ring = ring_of(windows)
    assert ring["pending"] == []
    assert "1000 ahead of used idx 0" in ring["problems"][0]


def test_ring_that_moves_meanwhile_is_said(machine: Machine, windows: Windows) -> None:
    # Once the areas are copied, the driver offers another chain.
    def move() -> None:
        if windows.reads[-1][2] == NUM * 16:
            windows.on_read = lambda: None
            machine.tx.send(b"more")

    windows.on_read = move
    found = report.dump(windows, 1)
    assert found["rings"][0]["moved"]
    assert any("! it moved while" in line for line in text.lines(found, PIPE))


def test_daemon_that_writes_all_the_time_is_said(windows: Windows) -> None:
    windows.metadata[md.GENERATION_OFFSET] = 5
    found = report.dump(windows)
    assert not found["consistent"]
    assert "the daemon wrote" in next(text.lines(found, PIPE))


def test_ring_in_a_window_that_is_not_there(machine: Machine, windows: Windows) -> None:
    third = md.Region(1 << 32, 4 << 20, 999, 0)
    windows.put(md.REGIONS + 2 * md.Region.layout.size, third)
    assert ring_of(windows)["problem"] == "window 999 is not there"


def test_region_beyond_its_window_is_read_up_to_the_windows_end(
    machine: Machine, windows: Windows
) -> None:
    third = md.Region(1 << 32, 8 << 20, WINDOW + 2, 0)
    windows.put(md.REGIONS + 2 * md.Region.layout.size, third)
    machine.tx.hand_over(Desc((1 << 32) + (4 << 20) - 8, 16))
    ring = ring_of(windows)
    problem = ring["descriptors"][ring["pending"][0]]["problem"]
    assert "lies beyond window 258, which has 0x400000 bytes" in problem


def test_ring_number_that_is_not_there(windows: Windows) -> None:
    with pytest.raises(Unreadable, match="no ring 2; there are 2"):
        report.dump(windows, 2)


def test_packed_ring_shows_what_is_available() -> None:
    with Machine(kind=PackedDriver, num=NUM, start=PackedDriver.FRESH) as machine:
        tx = machine.tx
        windows = Windows(
            machine, entry_of(machine.rx, packed=True), entry_of(tx, packed=True)
        )
        where = Position(
            origin=1,
            desc=tx.desc,
            driver=tx.avail,
            device=tx.used,
            size=NUM,
            at=1 << 15,
            next=1 << 15,
        )
        windows.put(md.POSITIONS + Position.layout.size, where)
        tx.send(b"head", b"body")
        tx.send(b"one", b"two", indirect=True)
        ring = ring_of(windows)
        assert ring["format"] == "packed"
        assert ring["position"] == {"index": 0, "wrap": 1}
        there = [one for one in ring["descriptors"] if one["available"]]
        assert [one["len"] for one in there] == [4, 4, 32]
        assert [one["len"] for one in there[2]["table"]] == [3, 3]
        windows.put(md.POSITIONS + Position.layout.size, replace(where, desc=1))
        assert "does not say" in ring_of(windows)["problems"][0]


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_dump_of_split_rings_looks_like_this(
    machine: Machine, windows: Windows, kind: str
) -> None:
    machine.tx.send(b"head", b"body")
    machine.tx.send(b"one", b"two", indirect=True)
    machine.tx.hand_over(Desc(0, 16))
    windows.put(md.AGENT + 0x18, (77).to_bytes(4, "little"))
    found = report.dump(windows, 1)
    shown = list(text.lines(found, golden.TERMINALS[kind]))
    golden.check(GOLDEN / f"dump-{kind}.txt", shown)


def test_dump_of_a_packed_ring_looks_like_this() -> None:
    with Machine(kind=PackedDriver, num=NUM, start=PackedDriver.FRESH) as machine:
        entries = [entry_of(one, packed=True) for one in (machine.rx, machine.tx)]
        windows = Windows(machine, *entries)
        tx = machine.tx
        at = {"desc": tx.desc, "driver": tx.avail, "device": tx.used, "size": NUM}
        where = Position(origin=1, at=1 << 15, next=1 << 15, **at)
        windows.put(md.POSITIONS + Position.layout.size, where)
        tx.send(b"one", b"two", indirect=True)
        found = report.dump(windows, 1)
    golden.check(GOLDEN / "dump-packed.txt", text.lines(found, Terminal(80)))


@given(st.data())
def test_any_bytes_are_dumped(data: st.DataObject) -> None:
    """Whatever lies in the metadata and the rings, there is a dump, within bounds."""
    with Machine((1 << 20, 1 << 16)) as machine:
        windows = Windows(machine, entry_of(machine.rx), entry_of(machine.tx))
        for _ in range(data.draw(st.integers(0, 6))):
            at = data.draw(st.integers(0, 0xC000))
            piece = data.draw(st.binary(max_size=80))
            windows.metadata[at : at + len(piece)] = piece
        for _ in range(data.draw(st.integers(0, 6))):
            at = data.draw(st.integers(0, 0x800))
            piece = data.draw(st.binary(max_size=64))
            machine.memory.regions[0].bytes[at : at + len(piece)] = piece
        for ring in (None, 0, 1):
            try:
                found = report.dump(windows, ring)
            except Unreadable:
                continue
            for terminal in golden.TERMINALS["40"], PIPE:
                shown = text.lines(found, terminal)
                assert all(line.isprintable() for line in shown)


CONFINED = md.Confined(shared=4 << 20, memory=1676 << 20)


def confine(machine: Machine, windows: Windows) -> None:
    """Have the device show the one region that has the rings."""
    windows.put(md.CONFINED, CONFINED)
    region = next(
        one
        for one in machine.memory.regions
        if one.guest_addr <= machine.tx.desc < one.guest_addr + one.size
    )
    windows.put(md.REGIONS, md.Region(region.guest_addr, region.size, WINDOW, 0))
    windows.show(WINDOW, region.bytes)
    entry = windows.metadata[md.DEVICE :][: md.Device.layout.size]
    device = md.Device.parse(bytes(entry))
    windows.put(md.DEVICE, replace(device, region_count=1))


def as_files(windows: Windows, undo: ExitStack) -> FileWindows:
    """Return what the host's command reads, until `undo` is closed."""
    files = {}
    for number, data in windows.contents().items():
        files[number] = os.memfd_create("window")
        undo.callback(os.close, files[number])
        os.write(files[number], data)
    return FileWindows(files)


def as_answers(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> AgentWindows:
    """Return what the guest's command reads."""

    def answer(pid: int, question: Json) -> Json:
        assert pid == 7
        part = windows.read(
            *(question[name] for name in ("window", "offset", "length"))
        )
        return {"data": b64encode(part).decode()}

    monkeypatch.setattr(status_socket, "request", answer)
    sizes = {number: len(data) for number, data in windows.contents().items()}
    own = sizes.pop(md.SLAVE_ID)
    further = [{"id": number, "size": size} for number, size in sizes.items()]
    link = {"pid": 7, "device": "a", "windows": further, "window_size": own}
    return AgentWindows(link)


@pytest.mark.parametrize("side", ["host", "guest"])
def test_dump_of_a_confined_device_looks_like_this_on_both_sides(
    machine: Machine, windows: Windows, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    confine(machine, windows)
    machine.tx.send(b"head", b"body")
    with ExitStack() as undo:
        if side == "host":
            found = report.dump(as_files(windows, undo))
        else:
            found = report.dump(as_answers(windows, monkeypatch))
    golden.check(GOLDEN / "dump-confined.txt", text.lines(found, Terminal(80)))
