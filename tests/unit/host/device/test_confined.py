# SPDX-License-Identifier: Apache-2.0
"""A confined device: its slave has the shared region of the master's memory only."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import json_document
from tests.fakes.frontend import WITH_SLOTS, Dropped, FrontEnd, Refused, RingAt, region
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import POOL, SHARED_AT, MakeFile, Scene
from vhostpci_host.cli import print_status
from vhostpci_host.device.status import describe, row, state
from vhostpci_host.memory.regions import PlacedRegion
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

SHARED, MEMORY = 32 * MIB, 1024 * MIB


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A confined device, with neither a front-end nor a slave yet."""
    with Scene(tmp_path, ManualLoop(), memory=MEMORY, confined=True) as scene:
        yield scene


def test_slave_has_the_shared_region_and_no_more(scene: Scene) -> None:
    scene.agent(scene.slave())
    scene.running()
    assert state(scene.device) == "running"
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert snapshot.regions == (md.Region(SHARED_AT, SHARED, 0, 0),)
    assert [ring.runs for ring in snapshot.rings] == [True, True]
    assert scene.device.store.size == 2 * SHARED  # with the metadata behind it


def test_agent_reads_how_much_of_the_memory_is_shared(scene: Scene) -> None:
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert snapshot.confined == md.Confined(shared=SHARED, memory=MEMORY)


def test_how_much_is_shared_is_told(scene: Scene) -> None:
    status = describe(scene.device)
    assert status["confined"] == {"shared": SHARED, "memory": MEMORY, "pool": POOL}
    assert "confined 32 MiB of 1 GiB" in print_status.text(status)
    known = json_document.documented("vhostpci-host status")
    found = set(json_document.keys(status, known))
    assert {"confined.shared", "confined.memory", "confined.pool"} <= found & known
    one = row(scene.config, scene.device, "")
    assert one["confined"] == status["confined"]
    assert "arena (confined)" in print_status.table([one])


def test_ring_outside_of_the_shared_region_is_not_served(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Its master's kernel has no CMA in the shared region: no other memory is shown."""
    front_end = scene.front_end()
    front_end.driver_ok([RingAt.nth(0, above=SHARED_AT), RingAt.nth(1)])
    scene.settle()
    assert state(scene.device) == "master's rings cannot be served"
    assert not scene.device.rings_run
    assert "iommu_platform=on" in caplog.text
    assert "see `vhostpci-host qemu-args dev --role master`" in caplog.text
    assert "share all of it" not in caplog.text
    front_end.stop_ring(0)
    front_end.stop_ring(1)
    scene.start(front_end)  # its guest was started again, with other words
    assert scene.device.rings_run


SHARED_END = SHARED_AT + SHARED
LAST_USED = SHARED_END - 2056
"""The last place for a used ring of 256 entries: 6 bytes and 8 for each, aligned."""
NO_ROOM = {
    "descriptor table": {"desc": SHARED_END - 0x800},
    "avail ring": {"avail": SHARED_END - 0x100},
    "used ring": {"used": LAST_USED + 4},
    "below": {"desc": SHARED_AT - 16},
}
AREAS = {"desc": "descriptor table", "avail": "avail ring", "used": "used ring"}


@pytest.mark.parametrize("part", NO_ROOM.values(), ids=[*NO_ROOM])
def test_rings_that_the_shared_region_has_no_room_for_are_not_served(
    scene: Scene, caplog: pytest.LogCaptureFixture, part: dict[str, int]
) -> None:
    """Such as those of a master whose ring area is used up: a part of them is there."""
    front_end = scene.front_end()
    good = [RingAt.nth(index, above=SHARED_AT) for index in range(2)]
    front_end.driver_ok([good[0], replace(good[1], **part)])
    scene.settle()
    assert state(scene.device) == "master's rings cannot be served"
    assert not scene.device.rings_run
    (area,) = part
    text = print_status.text(describe(scene.device))
    for told in (caplog.text, text):
        assert f"{AREAS[area]}: address 0x7f" in told
        assert "its rings in the shared region by the word cma=" in told
    front_end.stop_ring(0)
    front_end.stop_ring(1)
    front_end.driver_ok([good[0], replace(good[1], used=LAST_USED)])
    scene.settle()
    assert scene.device.rings_run


def test_buffers_outside_of_the_shared_region_are_told_of(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the agent sees them: the kernel has no bounce pool, or has it elsewhere."""
    with scene.agent(scene.slave()) as agent:
        scene.running()
        agent.say_ring(0, md.AgentRingState.BROKEN)
        scene.loop.advance(1.0)
    assert "the master's kernel lacks the word swiotlb=" in caplog.text
    assert "(`vhostpci-host qemu-args dev --role master`)" in caplog.text


def test_master_with_an_iommu_is_refused_and_stays(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rings' addresses mean nothing to us, although the memory may have them."""
    front_end = scene.running(has_iommu=True)
    assert Feature.F_ACCESS_PLATFORM in front_end.features
    assert state(scene.device) == "master's rings cannot be served"
    text = print_status.text(describe(scene.device))
    assert "problem  the master's driver gives addresses of an IOMMU" in text
    assert caplog.text.count("start a confined master without one") == 1
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert not any(ring.runs for ring in snapshot.rings)
    assert Feature.F_ACCESS_PLATFORM not in Feature(snapshot.device.features)


def test_ordinary_device_gives_no_iommu_its_feature(tmp_path: Path) -> None:
    with Scene(tmp_path, ManualLoop(), memory=MEMORY) as scene:
        front_end = scene.front_end(has_iommu=True)
        assert Feature.F_ACCESS_PLATFORM not in front_end.features


def test_memory_of_attach_mode_is_not_known(tmp_path: Path) -> None:
    with Scene(tmp_path, ManualLoop(), confined=True) as scene:
        status = describe(scene.device)
        assert status["confined"]["memory"] is None
        assert "confined 32 MiB\n" in print_status.text(status)


# What its master may show.


def refusal(scene: Scene, front_end: FrontEnd) -> str:
    """Return why it is disconnected; the slave sees nothing of its memory."""
    with pytest.raises(Dropped, match="SET_MEM_TABLE") as dropped:
        front_end.set_memory()
    scene.settle()
    assert scene.device.master is None
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert snapshot.regions == ()
    assert not scene.device.store.files
    # Of an attach device's master the daemon does not know the whole memory.
    size = "" if describe(scene.device)["confined"]["memory"] else " --memory SIZE"
    assert f"`vhostpci-host qemu-args dev --role master{size}`" in str(dropped.value)
    return str(dropped.value)


@pytest.mark.parametrize(
    ("size", "offset"), [(SHARED - MIB, 0), (SHARED + MIB, 0), (MIB, 0), (SHARED, MIB)]
)
def test_region_of_another_size_is_refused(
    scene: Scene, size: int, offset: int
) -> None:
    front_end = scene.front_end()
    part = region(size, guest_addr=SHARED_AT, offset=offset)
    front_end.regions = [(part, scene.device.store.file.fileno())]
    problem = refusal(scene, front_end)
    assert f"{size // MIB} MiB from {offset:#x} of its file on" in problem
    assert "has 32 MiB from 0 on" in problem


def test_other_memory_that_is_shared_is_refused(scene: Scene, file: MakeFile) -> None:
    """Such as a memfd with share=off, of which QEMU sends the file all the same."""
    front_end = scene.front_end()
    front_end.regions.insert(0, (region(16 * MIB), file()))
    problem = refusal(scene, front_end)
    assert "the memory at 0x0 (0x1000000 bytes) is not the shared region" in problem
    assert "memory-backend-ram" in problem
    scene.running()
    assert scene.device.rings_run


def test_master_whose_region_would_overwrite_the_metadata_is_refused(
    scene: Scene,
) -> None:
    front_end = scene.front_end()
    whole = region(scene.device.store.size, guest_addr=SHARED_AT)
    front_end.regions = [(whole, scene.device.store.file.fileno())]
    assert "reaches into the metadata" in refusal(scene, front_end)


def test_memory_that_is_plugged_later_is_refused_and_rings_go_on(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    scene.agent(scene.slave())
    front_end = scene.running(acks=WITH_SLOTS)
    before = scene.device.store.metadata.snapshot()
    dimm = vu.SingleRegion(region(16 * MIB, guest_addr=1 << 32))
    with pytest.raises(Refused, match="ADD_MEM_REG"):
        front_end.send(Request.ADD_MEM_REG, dimm, file(), need_reply=True)
    scene.settle()
    assert state(scene.device) == "running"
    assert scene.device.store.metadata.snapshot() == before
    assert "is not the shared region" in describe(scene.device)["master"]["problem"]
    assert caplog.text.count("refused ADD_MEM_REG") == 1
    # Its QEMU serves no ring while it has them served.  It would from the next start of
    # the driver on, which is refused.
    front_end.stop_ring(0)
    with pytest.raises(Refused):
        front_end.send(Request.ADD_MEM_REG, dimm, file(), need_reply=True)
    front_end.stop_ring(1)
    with pytest.raises(Dropped, match="ADD_MEM_REG"):
        front_end.send(Request.ADD_MEM_REG, dimm, file(), need_reply=True)


def test_ordinary_master_whose_memory_is_refused_stays(
    tmp_path: Path, file: MakeFile
) -> None:
    with Scene(tmp_path, ManualLoop(), memory=MEMORY) as scene:
        front_end = scene.front_end([(region(16 * MIB), file())])
        with pytest.raises(Refused, match="SET_MEM_TABLE"):
            front_end.set_memory()
        assert state(scene.device) == "master's memory is refused"


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, ManualLoop(), confined=True) as scene:
        yield scene


def test_attached_file_of_the_shared_region_is_shown(
    attached: Scene, file: MakeFile
) -> None:
    attached.agent(attached.slave())
    memory = [(attached.shared, file(SHARED))]
    attached.running(memory)
    (window,) = attached.shown
    assert attached.shown == {window: SHARED}
    snapshot = attached.device.store.metadata.snapshot()
    assert snapshot is not None
    assert snapshot.regions == (md.Region(SHARED_AT, SHARED, window, 0),)


@pytest.mark.parametrize("size", [SHARED // 2, 2 * SHARED])
def test_attached_file_of_another_size_is_refused(
    attached: Scene, file: MakeFile, size: int
) -> None:
    """A slave has whole files, so that a region as large as declared is not enough."""
    shared = region(min(size, SHARED), guest_addr=SHARED_AT)
    front_end = attached.front_end([(shared, file(size))])
    assert f"in a file of {size // MIB} MiB" in refusal(attached, front_end)


def test_second_attached_file_is_refused(attached: Scene, file: MakeFile) -> None:
    """Two of the right size: one of them is not the shared region."""
    front_end = attached.running([(attached.shared, file(SHARED))], acks=WITH_SLOTS)
    second = vu.SingleRegion(region(SHARED, guest_addr=1 << 32))
    with pytest.raises(Refused):
        front_end.send(Request.ADD_MEM_REG, second, file(SHARED), need_reply=True)
    attached.settle()
    assert len(attached.shown) == 1
    assert len(attached.device.store.files) == 1
    problem = describe(attached.device)["master"]["problem"]
    assert "shares one region only" in problem
    assert attached.device.rings_run


def test_successor_checks_the_region_again(
    scene: Scene, attached: Scene, file: MakeFile
) -> None:
    attached.running([(attached.shared, file(SHARED))])
    (window,) = attached.shown
    for one, number in ((scene, 0), (attached, window)):
        store = one.device.store
        store.check(PlacedRegion(one.shared, number, 0))
        part = region(SHARED // 2, guest_addr=SHARED_AT)
        with pytest.raises(ProtocolError, match="has 32 MiB from 0 on"):
            store.check(PlacedRegion(part, number, 0))


@given(
    attach=st.booleans(),
    table=st.lists(
        st.tuples(
            st.sampled_from([0, SHARED_AT, SHARED_AT + SHARED, 1 << 32]),
            st.sampled_from([0x1000, SHARED // 2, SHARED, SHARED + MIB, 2 * SHARED]),
            st.sampled_from([0, 0x1000, SHARED // 2, SHARED]),
            st.sampled_from([0, SHARED, 2 * SHARED]),
        ),
        max_size=3,
    ),
)
@settings(max_examples=60, deadline=None)
def test_slave_is_shown_the_shared_region_or_nothing(
    table: list[tuple[int, int, int, int]], *, attach: bool
) -> None:
    """Whatever the master shows: each region is in the arena, or in another file."""
    files = [os.memfd_create("memory") for *_, size in table if size]
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as path,
        Scene(
            Path(path), ManualLoop(), memory=0 if attach else MEMORY, confined=True
        ) as scene,
    ):
        left = iter(files)
        front_end = scene.front_end([], acks=WITH_SLOTS)
        for at, size, offset, file_size in table:
            fd = next(left) if file_size else scene.device.store.file.fileno()
            if file_size:
                os.ftruncate(fd, file_size)
            one = vu.SingleRegion(region(size, guest_addr=at, offset=offset))
            with suppress(Refused, Dropped):
                front_end.send(Request.ADD_MEM_REG, one, fd, need_reply=True)
        scene.settle()
        snapshot = scene.device.store.metadata.snapshot()
        assert snapshot is not None
        assert [(one.size, one.offset) for one in snapshot.regions] in (
            [],
            [(SHARED, 0)],
        )
        assert set(scene.shown.values()) <= {SHARED}
    for fd in files:
        os.close(fd)
