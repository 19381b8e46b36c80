# SPDX-License-Identifier: Apache-2.0
"""One master and its slave: what each sees of the other, and when."""

import logging
import mmap
import os
from pathlib import Path

import pytest

from tests.fakes.frontend import Dropped, FrontEnd, RingAt
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import Scene
from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import RingFlag
from vhostpci_shared.vhost_user import Request

RX = RingAt.nth(0)
RUNS = RingFlag.STARTED | RingFlag.ENABLED


def test_agent_is_shown_all_that_the_master_has_set_up(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        seen = agent.snapshot()
        assert seen.device.flags == md.DeviceFlag.MASTER | md.DeviceFlag.SLAVE
        assert seen.device.features == qemu.features
        assert seen.regions == (md.Region(0, 16 * MIB, 0, 0),)
        for index, ring in enumerate(seen.rings):
            at = RingAt.nth(index)
            assert (ring.desc, ring.driver, ring.device) == (at.desc, at.avail, at.used)
            assert ring.flags == RUNS | RingFlag.CALL
            assert (ring.size, ring.kick_vector) == (256, 1 + index)


def test_agent_is_not_shown_a_ring_before_its_call_is_known(scene: Scene) -> None:
    """QEMU sends KICK before CALL: a ring that ran in between would lose interrupts."""
    with scene.agent(scene.slave()) as agent:
        scene.running()
        assert all(
            ring.call_peer >= md.FIRST_CALL_PEER for ring in agent.snapshot().rings
        )
        asked = len(agent.asked)
        scene.loop.advance(1.0)
        assert len(agent.asked) == asked


def test_device_settles_when_the_front_end_has_been_quiet(scene: Scene) -> None:
    qemu = scene.front_end()
    qemu.driver_ok([RX])
    for _ in range(5):
        scene.loop.advance(0.003)
        assert not scene.device.leases[0].running
        qemu.send(Request.SET_OWNER)
    scene.loop.advance(0.006)
    assert scene.device.leases[0].running


def test_rings_start_even_if_the_front_end_keeps_sending_messages(
    scene: Scene,
) -> None:
    qemu = scene.front_end()
    qemu.driver_ok([RX])
    for _ in range(30):
        qemu.send(Request.SET_OWNER)
        scene.loop.advance(0.001)
    assert scene.device.leases[0].running


def test_kick_reaches_the_slaves_vector(scene: Scene) -> None:
    slave = scene.slave()
    qemu = scene.running()
    assert slave.interrupted(1)  # QEMU's first kick
    assert slave.interrupted(2)
    qemu.kick(1)
    scene.loop.advance()
    assert [slave.interrupted(1), slave.interrupted(2)] == [False, True]


def test_kick_that_is_known_when_the_slave_connects_is_its_vector(scene: Scene) -> None:
    """Such a kick goes from VM to VM without the daemon."""
    qemu = scene.running()
    slave = scene.slave()
    qemu.kick(1)
    assert slave.interrupted(2)
    scene.loop.advance()
    assert not slave.interrupted(2)
    assert scene.device.leases[1].relayed() == 0


def test_kick_of_a_driver_that_was_loaded_again_is_relayed(scene: Scene) -> None:
    qemu = scene.running()
    slave = scene.slave()
    slave.interrupted(2)
    qemu.stop_ring(1)
    qemu.start_ring(RingAt.nth(1))
    scene.settle()
    slave.interrupted(2)
    qemu.kick(1)
    scene.loop.advance()
    assert slave.interrupted(2)
    assert scene.device.leases[1].relayed() >= 1


def test_kick_that_is_sent_again_is_not_relayed_to_itself(scene: Scene) -> None:
    qemu = scene.running()
    slave = scene.slave()
    kick = vu.VringFd(1)
    qemu.send(Request.SET_VRING_KICK, kick, qemu.kicks[1])
    scene.settle()
    slave.interrupted(2)
    qemu.kick(1)
    scene.loop.advance()
    assert slave.interrupted(2)
    assert scene.device.leases[1].relayed() == 0


def test_kicks_that_swap_their_rings_end_the_connection(scene: Scene) -> None:
    """If they were relayed, each would signal the other without end."""
    qemu = scene.running()
    scene.slave()
    for index in range(2):
        kick = vu.VringFd(index)
        qemu.send(Request.SET_VRING_KICK, kick, qemu.kicks[1 - index])
    scene.settle()
    with pytest.raises(Dropped, match="kick of another ring"):
        qemu.send(Request.SET_OWNER)


def test_next_slave_gets_the_same_kicks_as_the_previous_one(scene: Scene) -> None:
    qemu = scene.running()
    scene.slave()
    slave = scene.slave()
    qemu.kick(0)
    assert slave.interrupted(1)


def test_doorbell_of_the_slave_interrupts_the_master(scene: Scene) -> None:
    slave = scene.slave()
    agent = scene.agent(slave)
    qemu = scene.running()
    for index in range(2):
        assert qemu.called(index, 0)  # one for an interrupt that may have been lost
    scene.loop.advance(2.0)
    for index in range(2):
        qemu.called(index, 0)
    ring = agent.snapshot().rings[1]
    slave.ring(ring.call_peer, ring.call_vector)
    assert [qemu.called(0, 0), qemu.called(1, 0)] == [False, True]


def test_call_that_is_a_pipe_is_signalled_through_an_eventfd(scene: Scene) -> None:
    slave = scene.slave()
    qemu = scene.running()
    read, write = os.pipe2(os.O_NONBLOCK)  # a signal that is missing fails at once
    try:
        qemu.send(Request.SET_VRING_CALL, vu.VringFd(0), write)
        scene.settle()
        assert os.read(read, 100)
        slave.ring(max(slave.peers), 0)
        scene.loop.advance()
        assert len(os.read(read, 100)) == 8
    finally:
        os.close(read)
        os.close(write)


def test_rings_stop_at_once_when_the_connection_ends(scene: Scene) -> None:
    """QEMU's own virtio-net uses the rings from then on."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        before = scene.sessions()
        qemu.close()
        seen = agent.snapshot()
        assert not any(ring.runs for ring in seen.rings)
        assert (seen.regions, seen.device.features) == ((), 0)
        assert seen.device.flags == md.DeviceFlag.SLAVE
        assert all(new > old for new, old in zip(scene.sessions(), before, strict=True))


def test_every_start_and_stop_begins_a_new_session(scene: Scene) -> None:
    with scene.agent(scene.slave()):
        qemu = scene.front_end()
        seen = [scene.sessions()[0]]
        for turn in range(5):
            qemu.driver_ok([RingAt.nth(0, base=turn)])
            scene.settle()
            seen.append(scene.sessions()[0])
            scene.set_used(RX, turn + 1)
            assert qemu.stop_ring(0) == turn + 1
            seen.append(scene.sessions()[0])
    assert seen == sorted(set(seen))


def test_new_memory_stops_the_rings_and_starts_them_where_they_stood(
    scene: Scene,
) -> None:
    """SPDK #3132, VPP #776: SET_MEM_TABLE while the rings run."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        scene.set_used(RX, 99)
        before = agent.snapshot()
        qemu.set_memory()
        assert not any(ring.runs for ring in agent.snapshot().rings)
        scene.settle()
        after = agent.snapshot()
        assert all(ring.runs for ring in after.rings)
        assert after.rings[0].base == 99
        assert after.rings[0].session > before.rings[0].session


def test_disabled_ring_is_taken_from_the_agent(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        qemu.enable(on=False)
        scene.settle()
        assert not any(ring.runs for ring in agent.snapshot().rings)
        qemu.enable()
        scene.settle()
        assert all(ring.runs for ring in agent.snapshot().rings)


def test_slave_may_come_before_or_after_the_master(scene: Scene) -> None:
    scene.running()
    for _ in range(3):
        with scene.agent(scene.slave()) as agent:
            rings = agent.snapshot().rings
            assert all(ring.runs and ring.flags & RingFlag.CALL for ring in rings)


def test_each_start_is_a_new_peer_and_the_old_peer_leaves_once(scene: Scene) -> None:
    slave = scene.slave()
    with scene.agent(slave) as agent:
        qemu = scene.front_end()
        peers = []
        for _ in range(10):
            scene.start(qemu)
            peers.append(agent.snapshot().rings[0].call_peer)
            qemu.stop_ring(0)
            qemu.stop_ring(1)
            scene.loop.advance(1.5)
        assert peers == list(range(2, 12))
        assert set(slave.peers) == {md.DAEMON_PEER, peers[-1]}


def test_old_peer_leaves_after_a_time_without_an_agent(scene: Scene) -> None:
    slave = scene.slave()
    qemu = scene.front_end()
    for _ in range(2):
        scene.start(qemu)
    assert set(slave.peers) == {md.DAEMON_PEER, 2, 3}
    scene.loop.advance(1.5)
    assert set(slave.peers) == {md.DAEMON_PEER, 3}
    qemu.close()
    scene.loop.advance(1.5)
    assert set(slave.peers) == {md.DAEMON_PEER}


def test_ring_that_stops_alone_takes_no_new_peer(scene: Scene) -> None:
    slave = scene.slave()
    qemu = scene.running()
    qemu.stop_ring(0)
    scene.loop.advance(1.5)
    assert set(slave.peers) == {md.DAEMON_PEER, 2}


def test_interrupt_that_went_to_the_old_peer_is_repeated(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        scene.loop.advance(2.0)
        agent.answers = False
        qemu._new_call(0)
        scene.settle()
        assert qemu.called(0, 0)
        assert not qemu.called(0, 0)
        agent.answer()  # until now the agent may have rung the old peer's doorbell
        scene.loop.advance()
        assert qemu.called(0, 0)


def test_peer_is_published_only_after_the_slaves_qemu_has_read_of_it(
    scene: Scene,
) -> None:
    slave = scene.slave()
    slave.behind = True
    qemu = scene.front_end()
    qemu.driver_ok([RX])
    scene.loop.advance(0.05)
    assert not scene.device.leases[0].running
    slave.behind = False
    scene.loop.advance(0.01)
    assert scene.device.leases[0].running


def test_rings_start_after_a_time_although_the_slave_reads_nothing(
    scene: Scene,
) -> None:
    slave = scene.slave()
    slave.behind = True
    qemu = scene.front_end()
    qemu.driver_ok([RX])
    scene.loop.advance(0.2)
    assert scene.device.leases[0].running


def test_slave_is_dropped_when_the_peer_ids_are_used_up(scene: Scene) -> None:
    slave = scene.slave()
    qemu = scene.front_end()
    assert scene.device.slave is not None
    scene.device.slave.peers.used = 65534
    scene.start(qemu)
    assert slave.dropped is not None
    assert "plug it again" in slave.dropped


def test_polling_driver_is_not_interrupted(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        qemu.send(Request.SET_VRING_CALL, vu.VringFd(0, nofd=True))
        scene.settle()
        rings = agent.snapshot().rings
        assert [bool(ring.flags & RingFlag.CALL) for ring in rings] == [False, True]


def test_agent_is_told_to_poll_a_ring_without_a_kick(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        qemu.send(Request.SET_VRING_KICK, vu.VringFd(0, nofd=True))
        scene.settle()
        rings = agent.snapshot().rings
        assert [bool(ring.flags & RingFlag.POLL) for ring in rings] == [True, False]
        assert all(ring.runs for ring in rings)


def test_replaced_kick_is_the_one_that_is_relayed(scene: Scene) -> None:
    slave = scene.slave()
    qemu = scene.running()
    slave.interrupted(1)
    old = os.dup(qemu.kicks[0])
    qemu._new_kick(0)
    scene.settle()
    assert slave.interrupted(1)
    os.eventfd_write(old, 1)
    scene.loop.advance()
    assert not slave.interrupted(1)
    os.close(old)


def test_eventfd_that_was_made_blocking_does_not_stop_the_daemon(scene: Scene) -> None:
    """QEMU clears O_NONBLOCK of descriptors that it was sent and did not want."""
    slave = scene.slave()
    qemu = scene.running()
    for fd in (*qemu.kicks.values(), *slave.own, *slave.peers[md.DAEMON_PEER]):
        os.set_blocking(fd, True)
    qemu.kick(0)
    slave.ring(md.DAEMON_PEER, 0)
    scene.loop.advance(1.0)
    assert slave.interrupted(1)


def test_daemon_has_a_heartbeat(scene: Scene) -> None:
    before = scene.device.store.metadata.heartbeat()
    scene.loop.advance(5.0)
    assert scene.device.store.metadata.heartbeat() >= before + 10


@pytest.mark.parametrize("size", [0, 5 * MIB], ids=["to nothing", "in the middle"])
def test_arena_that_was_cut_is_restored_and_published_again(
    scene: Scene, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    scene.slave()
    scene.running()
    before = snapshot(scene)
    for _ in range(3):
        os.truncate(scene.config.arena, size)
        scene.loop.advance(1.0)
    after = snapshot(scene)
    assert scene.config.arena.stat().st_size == scene.device.store.size
    assert after.generation > before.generation
    assert after.device == before.device
    assert after.regions == before.regions
    assert [ring.flags for ring in after.rings] == [
        ring.flags | RingFlag.RESUME for ring in before.rings
    ]
    assert not {r.session for r in after.rings} & {r.session for r in before.rings}
    assert caplog.text.count("another process cut") == 1


def test_arena_that_was_cut_and_grown_between_two_checks_is_restored(
    scene: Scene,
) -> None:
    scene.running()
    before = snapshot(scene)
    os.truncate(scene.config.arena, 0)
    os.truncate(scene.config.arena, scene.device.store.size)
    scene.loop.advance(0.3)
    assert snapshot(scene).regions == before.regions


def snapshot(scene: Scene) -> md.Snapshot:
    """Return what a process that maps the file now reads in it."""
    with scene.config.arena.open("r+b") as file, mmap.mmap(file.fileno(), 0) as window:
        metadata = access.Metadata(access.find(memoryview(window)))
        found = metadata.snapshot()
        metadata.release()
    assert found is not None
    return found


def test_refusal_is_logged_with_the_request(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    qemu = scene.front_end()
    stray = os.memfd_create("stray")
    os.ftruncate(stray, 16 * MIB)
    qemu.regions = [(qemu.regions[0][0], stray)]
    with pytest.raises(Exception, match="SET_MEM_TABLE"):
        qemu.set_memory()
    os.close(stray)
    assert "refused SET_MEM_TABLE" in caplog.text
    assert f"mem-path={scene.config.arena},share=on" in caplog.text


def test_base_that_is_not_the_used_index_is_logged(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    qemu = scene.front_end()
    qemu.driver_ok([RingAt.nth(0, base=5)])
    scene.settle()
    assert "is to start at 5, but its used index is 0" in caplog.text


@pytest.mark.parametrize("pairs", [1, 4])
def test_slave_is_always_sent_all_vectors_of_a_peer(tmp_path: Path, pairs: int) -> None:
    with Scene(tmp_path, ManualLoop(), memory=16 * MIB, queue_pairs=pairs) as scene:
        slave = scene.slave()
        assert slave.messages[:3] == [(0, False), (0, False), (-1, True)]
        assert len(slave.own) == 1 + 2 * pairs
        qemu = scene.front_end()
        for _ in range(3):
            scene.start(qemu)
            newest = max(slave.peers)
            assert len(slave.peers[newest]) == 2 * pairs
            for index in range(2 * pairs):
                qemu.stop_ring(index)


def test_starts_and_stops_are_logged(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    qemu: FrontEnd = scene.running()
    qemu.stop_ring(0)
    qemu.close()
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "dev: front-end connected (pid 0)",
        "dev: started rings [0, 1]",
        "dev: stopped rings [0]",
        "dev: front-end disconnected",
        "dev: stopped rings [1]",
    ]
