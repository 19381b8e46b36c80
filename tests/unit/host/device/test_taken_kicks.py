# SPDX-License-Identifier: Apache-2.0
"""A slave process that takes the master's kicks and calls themselves, as a peer."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frontend import FrontEnd, RingAt
from tests.fakes.loop import ManualLoop
from tests.fakes.other_frontends import UML_BASE, UserModeLinux, ring_at, uml_region
from tests.fakes.ports import RecordedSlave
from tests.fakes.windows import MIB
from tests.unit.host.scene import MakeFile, Scene, ToDevice
from vhostpci_host.device.status import describe
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request

SIZE = 4 * MIB


@pytest.fixture
def slave(scene: Scene) -> RecordedSlave:
    """A slave process that connects before its master."""
    return scene.slave(is_process=True, takes_kicks=True)


def entry(scene: Scene, index: int = 1) -> md.Ring:
    """Return a ring's entry in the metadata."""
    seen = scene.device.store.metadata.snapshot()
    assert seen is not None
    return seen.rings[index]


def kicked(slave: RecordedSlave, ring: md.Ring) -> bool:
    """Return whether a ring's kick was signalled, and clear it."""
    kick = slave.peers[ring.kick_peer][ring.kick_vector]
    if not select.select([kick], [], [], 0)[0]:
        return False
    os.eventfd_read(kick)
    return True


def load_again(scene: Scene, qemu: FrontEnd) -> None:
    """Load the driver of ring 1 again."""
    qemu.stop_ring(1)
    qemu.start_ring(RingAt.nth(1))
    scene.settle()


def test_kick_of_a_master_that_comes_later_needs_no_daemon(
    scene: Scene, slave: RecordedSlave
) -> None:
    qemu = scene.running()
    ring = entry(scene)
    assert (ring.kick_peer, ring.kick_vector) == (ring.call_peer, 2 + 1)
    assert kicked(slave, ring)  # QEMU's first kick
    qemu.kick(1)
    assert kicked(slave, ring)
    scene.loop.advance()
    assert not slave.interrupted(2)
    assert scene.device.leases[1].relayed() == 0
    assert [ring["kick_direct"] for ring in describe(scene.device)["rings"]] == [
        True,
        True,
    ]


def test_kick_of_a_driver_that_is_loaded_again_comes_in_another_peer(
    scene: Scene, slave: RecordedSlave
) -> None:
    qemu = scene.running()
    before = entry(scene)
    load_again(scene, qemu)
    after = entry(scene)
    assert after.kick_peer > before.kick_peer
    kicked(slave, after)
    qemu.kick(1)
    assert kicked(slave, after)
    assert scene.device.leases[1].relayed() == 0


def test_kick_that_is_replaced_while_the_ring_runs_comes_in_another_peer(
    scene: Scene, slave: RecordedSlave
) -> None:
    qemu = scene.running()
    before = entry(scene)
    qemu._replace(qemu.kicks, 1)
    qemu.send(Request.SET_VRING_KICK, vu.VringFd(1), qemu.kicks[1])
    scene.settle()
    after = entry(scene)
    assert (after.session, after.kick_peer > before.kick_peer) == (before.session, True)
    qemu.kick(1)
    assert kicked(slave, after)


@pytest.mark.parametrize("is_process", [False, True], ids=["QEMU", "older agent"])
def test_slave_that_does_not_take_kicks_never_sees_them(
    scene: Scene, *, is_process: bool
) -> None:
    slave = scene.slave(is_process=is_process)
    qemu = scene.running()
    ring = entry(scene)
    assert (ring.kick_peer, ring.kick_vector) == (0, 2)
    assert len(slave.peers[ring.call_peer]) == 2
    load_again(scene, qemu)
    assert entry(scene).kick_peer == 0


def test_polled_ring_has_no_kick(scene: Scene, slave: RecordedSlave) -> None:
    qemu = scene.running()
    qemu.send(Request.SET_VRING_KICK, vu.VringFd(1, nofd=True))
    scene.settle()
    assert entry(scene).flags & md.RingFlag.POLL
    assert entry(scene).kick_peer == 0
    assert not describe(scene.device)["rings"][1]["kick_direct"]


def test_interrupts_that_may_be_lost_are_no_kicks(
    scene: Scene, slave: RecordedSlave
) -> None:
    qemu = scene.running()
    kicked(slave, entry(scene))
    assert qemu.called(1)
    assert scene.device.slave is not None
    scene.device.slave.signal_calls()
    assert qemu.called(1, 0)
    assert not kicked(slave, entry(scene))


def test_pipe_is_relayed_to_the_peer(scene: Scene, slave: RecordedSlave) -> None:
    """The agent waits for eventfds only."""
    qemu = scene.running()
    read, write = os.pipe2(os.O_CLOEXEC)
    qemu.send(Request.SET_VRING_KICK, vu.VringFd(1), read)
    os.close(read)
    scene.settle()
    ring = entry(scene)
    assert not kicked(slave, ring)
    os.write(write, bytes(8))
    scene.loop.advance()
    assert kicked(slave, ring)
    assert scene.device.leases[1].relayed() == 1
    assert not describe(scene.device)["rings"][1]["kick_direct"]
    os.close(write)


@pytest.fixture
def uml(tmp_path: Path, file: MakeFile) -> Iterator[tuple[Scene, UserModeLinux]]:
    """User Mode Linux, booted, in attach mode."""
    with Scene(tmp_path, ManualLoop()) as scene:
        memory = [(uml_region(SIZE), file(UML_BASE + SIZE))]
        with UserModeLinux(ToDevice(scene.device, scene.loop), memory) as uml:
            uml.connect()
            yield scene, uml


def test_slave_has_the_socket_that_is_the_call_of_user_mode_linux(
    uml: tuple[Scene, UserModeLinux],
) -> None:
    scene, master = uml
    slave = scene.slave(is_process=True, takes_kicks=True)
    master.driver_ok([ring_at(UML_BASE, index) for index in range(2)])
    scene.settle()
    ring = entry(scene)
    assert master.interrupted(1), "no interrupt for what may have been lost"
    os.write(slave.peers[ring.call_peer][ring.call_vector], (1).to_bytes(8, "little"))
    assert master.interrupted(1)
