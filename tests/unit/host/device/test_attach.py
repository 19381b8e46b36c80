# SPDX-License-Identifier: Apache-2.0
"""Attach mode: which file is which window, and when a window comes and goes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frontend import Dropped, Refused, RingAt, region
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import MakeFile, Scene
from vhostpci_host.errors import HostError
from vhostpci_host.ivshmem.slave import KEPT_MAX
from vhostpci_host.memory.attach import WindowIds
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentState
from vhostpci_shared.vhost_user import ProtocolFeature, Request

Memory = list[tuple[vu.MemRegion, int]]
SLOTS = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
HIGH = 1 << 32


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, ManualLoop()) as scene:
        yield scene


@pytest.fixture
def plugged(tmp_path: Path) -> Iterator[Scene]:
    """A device whose windows are plugged into a slave VM."""
    with Scene(tmp_path, ManualLoop(), slave_qmp=tmp_path / "qmp") as scene:
        yield scene


def regions(scene: Scene) -> tuple[md.Region, ...]:
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    return snapshot.regions


def two_nodes(one: int, other: int) -> Memory:
    return [
        (region(16 * MIB), one),
        (region(16 * MIB, guest_addr=HIGH), other),
    ]


def test_plugged_device_keeps_its_old_peers(plugged: Scene, file: MakeFile) -> None:
    """QEMU would free them a second time when the device is unplugged."""
    memory = [(region(16 * MIB), file(16 * MIB))]
    slave = plugged.slave()
    qemu = plugged.front_end(memory)
    for _ in range(2):
        plugged.start(qemu)
    plugged.loop.advance(1.5)
    assert set(slave.peers) == {md.DAEMON_PEER, 2, 3}
    qemu.close()
    plugged.loop.advance(1.5)
    assert set(slave.peers) == {md.DAEMON_PEER, 2, 3}


def test_each_file_of_the_master_is_a_window(scene: Scene, file: MakeFile) -> None:
    scene.running(two_nodes(file(16 * MIB), file(32 * MIB)))
    assert regions(scene) == (
        md.Region(0, 16 * MIB, 256, 0),
        md.Region(HIGH, 16 * MIB, 257, 0),
    )
    assert scene.shown == {256: 16 * MIB, 257: 32 * MIB}


def test_regions_of_one_file_are_in_one_window(scene: Scene, file: MakeFile) -> None:
    fd = file(16 * MIB)
    low, high = region(MIB), region(4 * MIB, guest_addr=HIGH, offset=8 * MIB)
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    scene.running([(low, fd), (high, other)])
    os.close(other)
    assert regions(scene) == (
        md.Region(0, MIB, 256, 0),
        md.Region(HIGH, 4 * MIB, 256, 8 * MIB),
    )


def test_window_0_is_the_metadata_and_cannot_be_cut(scene: Scene) -> None:
    fd = scene.device.store.file.fileno()
    assert os.fstat(fd).st_size == md.SIZE
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_window_is_published_only_after_it_has_a_socket(
    scene: Scene, file: MakeFile
) -> None:
    qemu = scene.front_end([(region(16 * MIB), file())])
    qemu.driver_ok([RingAt.nth(0)])
    while not regions(scene):
        assert not scene.shown
        scene.loop.advance(0.001)
    assert scene.shown


def test_region_whose_window_has_no_socket_yet_is_not_published(
    scene: Scene, file: MakeFile
) -> None:
    """A ring stops, which is published, before an added region has its window."""
    one = region(16 * MIB, guest_addr=HIGH)
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running([(region(16 * MIB), file())], acks=SLOTS)
        qemu.send(Request.ADD_MEM_REG, vu.SingleRegion(one), file(), need_reply=True)
        qemu.stop_ring(0)
        assert not agent.snapshot().rings[0].runs
        assert [r.window for r in agent.snapshot().regions] == list(scene.shown)


def test_table_that_is_sent_a_thousand_times_is_one_window(
    scene: Scene, file: MakeFile
) -> None:
    scene.agent(scene.slave())
    qemu = scene.running([(region(16 * MIB), file())])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        qemu.set_memory()
    scene.settle()
    assert scene.sockets.ever == 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(ring.running for ring in scene.device.leases)


def test_memory_that_is_added_while_rings_run_is_another_window(
    scene: Scene, file: MakeFile
) -> None:
    agent = scene.agent(scene.slave())
    qemu = scene.running([(region(16 * MIB), file())])
    sessions = [ring.session for ring in agent.snapshot().rings]
    qemu.regions.append((region(16 * MIB, guest_addr=HIGH), file()))
    qemu.set_memory()
    scene.settle()
    assert [one.window for one in agent.snapshot().regions] == [256, 257]
    for before, ring in zip(sessions, agent.snapshot().rings, strict=True):
        assert ring.runs
        assert ring.session != before


@pytest.mark.parametrize("state", [AgentState.READY, AgentState.WAITING])
def test_window_is_closed_when_the_agent_has_released_it(
    scene: Scene, file: MakeFile, state: AgentState
) -> None:
    """Also by one that runs no ring: it has the windows mapped all the same."""
    agent = scene.agent(scene.slave())
    qemu = scene.running(two_nodes(file(), file()))
    agent.say(state=state)
    qemu.regions.pop()
    qemu.set_memory()  # stops the rings; they start again when the device settles
    agent.answers = False
    scene.loop.advance(0.5)
    assert 257 in scene.shown
    agent.answer()
    scene.loop.advance(0.001)
    assert list(scene.shown) == [256]
    assert list(scene.device.store.files) == [256]


def test_each_window_stays_open_until_the_agent_has_released_it(
    scene: Scene, file: MakeFile
) -> None:
    agent = scene.agent(scene.slave())
    third = (region(16 * MIB, guest_addr=2 * HIGH), file())
    qemu = scene.front_end([*two_nodes(file(), file()), third])
    qemu.set_memory()  # no ring runs, so nothing waits for the agent
    scene.settle()
    agent.answers = False
    dropped = []
    for _ in "12":
        qemu.regions.pop()
        qemu.set_memory()
        scene.settle()
        dropped.append(agent.metadata.generation())
    assert sorted(scene.shown) == [256, 257, 258]
    agent.say(generation=dropped[0])
    scene.loop.advance(0.001)
    assert sorted(scene.shown) == [256, 257]
    agent.say(generation=dropped[1])
    scene.loop.advance(0.001)
    assert sorted(scene.shown) == [256]


def test_window_is_closed_after_a_time_if_the_agent_does_not_answer(
    scene: Scene, file: MakeFile
) -> None:
    scene.agent(scene.slave()).answers = False
    qemu = scene.running([(region(16 * MIB), file())])
    qemu.close()
    assert scene.shown
    scene.loop.advance(1.5)
    assert not scene.shown
    assert not scene.device.store.files


def test_master_that_reconnects_at_once_keeps_its_window(
    scene: Scene, file: MakeFile
) -> None:
    scene.agent(scene.slave()).answers = False
    memory = [(region(16 * MIB), file())]
    scene.running(memory).close()
    scene.running(memory)
    scene.loop.advance(1.5)
    assert scene.shown == {256: 16 * MIB}
    assert scene.sockets.ever == 1


def test_refused_table_leaves_no_window(scene: Scene, file: MakeFile) -> None:
    qemu = scene.front_end()
    qemu.regions = [
        (region(16 * MIB), file()),
        (region(32 * MIB, guest_addr=HIGH), file(16 * MIB)),
    ]
    with pytest.raises(Refused):
        qemu.driver_ok([RingAt.nth(0)])
    scene.settle()
    assert not scene.device.store.files
    assert not scene.shown


def test_window_that_waits_for_the_agent_is_kept(scene: Scene, file: MakeFile) -> None:
    """While the rings are being stopped, only the waiting message has the file."""
    agent = scene.agent(scene.slave())
    agent.answers = False
    qemu = scene.running([(region(16 * MIB), file())])
    qemu.regions.append((region(16 * MIB, guest_addr=HIGH), file()))
    qemu.set_memory()  # waits for the agent for a second, in which ticks pass
    scene.settle()
    assert sorted(scene.shown) == [256, 257]


def test_file_that_is_too_short_for_its_region_is_refused(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    qemu = scene.front_end([(region(16 * MIB, offset=MIB), file(16 * MIB))])
    with pytest.raises(Refused):
        qemu.set_memory()
    assert "beyond the end of its file" in caplog.text


def test_file_that_may_not_be_written_is_refused(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    read_only = os.open(f"/proc/self/fd/{file()}", os.O_RDONLY)
    qemu = scene.front_end([(region(MIB), read_only)])
    with pytest.raises(Refused):
        qemu.set_memory()
    os.close(read_only)
    assert "may not be written" in caplog.text


def test_descriptor_that_is_no_memory_is_refused(scene: Scene) -> None:
    read, write = os.pipe()
    qemu = scene.front_end([(region(MIB), read)])
    with pytest.raises(Refused):
        qemu.set_memory()
    os.close(read)
    os.close(write)


def test_file_that_is_cut_is_logged_once_and_the_front_end_goes_on(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    fd = file(16 * MIB)
    qemu = scene.running([(region(16 * MIB), fd)])
    os.ftruncate(fd, 0)
    scene.loop.advance(2.0)
    said = f"window 256 was cut from {16 * MIB} to 0 bytes"
    assert caplog.text.count(said) == 1
    assert qemu.stop_ring(0) == 0


# Sizes of windows: a slave VM needs a power of two.


def test_size_that_is_no_power_of_two_is_accepted_for_a_process(
    scene: Scene, file: MakeFile
) -> None:
    scene.slave(is_process=True)
    scene.running([(region(24 * MIB), file(24 * MIB))])
    assert scene.shown == {256: 24 * MIB}


def test_size_that_is_no_power_of_two_is_refused_for_a_slave_vm(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    scene.slave()
    qemu = scene.front_end([(region(24 * MIB), file(24 * MIB))])
    with pytest.raises(Refused):
        qemu.set_memory()
    assert "24 MiB" in caplog.text
    assert "size=32M" in caplog.text


def test_size_that_is_no_power_of_two_is_refused_before_anything_is_plugged(
    plugged: Scene, file: MakeFile
) -> None:
    qemu = plugged.front_end([(region(24 * MIB), file(24 * MIB))])
    with pytest.raises(Refused):
        qemu.set_memory()
    assert not plugged.plugger.wanted


# Windows that are plugged into a slave VM.


def test_nothing_is_plugged_before_the_masters_driver_is_loaded(
    plugged: Scene, file: MakeFile
) -> None:
    qemu = plugged.front_end([(region(16 * MIB), file())])
    plugged.settle()
    assert not plugged.plugger.wanted
    plugged.start(qemu)
    assert plugged.plugger.windows == {0, 256}
    for plug in plugged.plugger.wanted:
        assert plug.vectors == (1 if plug.window else 3)
        assert plug.size == (16 * MIB if plug.window else md.SIZE)
        assert plug.socket == plugged.config.window(plug.window)


def test_reload_of_the_driver_leaves_the_windows_plugged(
    plugged: Scene, file: MakeFile
) -> None:
    qemu = plugged.running([(region(16 * MIB), file())])
    qemu.stop_ring(0)
    qemu.stop_ring(1)
    plugged.loop.advance(3.0)
    assert plugged.plugger.windows == {0, 256}


def test_all_windows_are_unplugged_when_the_master_disconnects(
    plugged: Scene, file: MakeFile
) -> None:
    agent = plugged.agent(plugged.slave())
    qemu = plugged.running([(region(16 * MIB), file())])
    agent.answers = False
    qemu.close()
    plugged.loop.advance(0.1)
    assert plugged.plugger.windows == {0, 256}, "the agent still has them"
    agent.answer()
    plugged.loop.advance(0.001)
    assert not plugged.plugger.wanted


def test_device_with_too_many_old_peers_is_unplugged_and_plugged_again(
    plugged: Scene, file: MakeFile
) -> None:
    """They cannot be taken back, and a master may reload its driver without end."""
    slave = plugged.slave()
    qemu = plugged.running([(region(16 * MIB), file())])
    while not plugged.plugger.left_out:
        for index in range(2):
            qemu.stop_ring(index)
        plugged.start(qemu)
        doorbell, present = 1, 2
        assert sum(map(len, slave.peers.values())) <= KEPT_MAX + present + doorbell
    assert plugged.plugger.left_out == {0}
    assert plugged.plugger.windows == {0, 256}
    assert not any(ring.running for ring in plugged.device.leases)
    plugged.slave()
    plugged.settle()
    assert all(ring.running for ring in plugged.device.leases)


def test_arena_is_plugged_too(tmp_path: Path) -> None:
    qmp = tmp_path / "qmp"
    with Scene(tmp_path, ManualLoop(), memory=16 * MIB, slave_qmp=qmp) as scene:
        qemu = scene.running()
        (plug,) = scene.plugger.wanted
        assert (plug.window, plug.size) == (0, 32 * MIB)
        qemu.close()
        scene.settle()
        assert not scene.plugger.wanted


def test_window_without_a_socket_ends_the_connection(
    scene: Scene, file: MakeFile
) -> None:
    scene.sockets.full = True
    qemu = scene.front_end([(region(16 * MIB), file())])
    qemu.driver_ok([RingAt.nth(0)])
    scene.settle()
    with pytest.raises(Dropped, match="no socket for you"):
        qemu.send(Request.SET_OWNER)


# Regions that are added and removed one by one.


def test_regions_that_are_added_one_by_one_become_windows(
    scene: Scene, file: MakeFile
) -> None:
    memory = two_nodes(file(), file())
    qemu = scene.front_end([], acks=SLOTS)
    for one, fd in memory:
        qemu.send(Request.ADD_MEM_REG, vu.SingleRegion(one), fd, need_reply=True)
    scene.settle()
    assert sorted(scene.shown) == [256, 257]
    qemu.send(Request.REM_MEM_REG, vu.SingleRegion(memory[0][0]), need_reply=True)
    scene.loop.advance(2.0)
    assert list(scene.shown) == [257]


# The numbers of the windows.


def test_window_number_is_used_again_as_late_as_possible() -> None:
    ids = WindowIds(md.LAST_WINDOW)
    assert [ids.new(), ids.new(), ids.new()] == [
        md.LAST_WINDOW,
        md.FIRST_WINDOW,
        md.FIRST_WINDOW + 1,
    ]
    ids.free(md.FIRST_WINDOW)
    assert ids.new() == md.FIRST_WINDOW + 2


def test_window_number_in_use_is_not_given_again() -> None:
    ids = WindowIds(md.LAST_WINDOW)
    kept = ids.new()
    others = [ids.new() for _ in range(md.LAST_WINDOW - md.FIRST_WINDOW)]
    assert kept not in others
    with pytest.raises(HostError, match="remove a device"):
        ids.new()
