# SPDX-License-Identifier: Apache-2.0
"""The data plane vhost-user with a back-end that does as it should."""

import ctypes
import errno
import os
from dataclasses import replace

import pytest

from tests.threads import is_gone, only_thread
from tests.unit.guest.dataplane.vhost_user.scene import (
    DEVICE,
    DRIVER,
    FEATURES,
    GUEST,
    SIZE,
    Scene,
)
from tests.waiting import wait_for
from vhostpci_guest.dataplane.interface import RingRefused
from vhostpci_guest.eventfds import drain
from vhostpci_guest.interfaces import Doorbell
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature


def test_without_a_back_end_it_waits_and_knows_no_features(scene: Scene) -> None:
    assert scene.plane.waiting == f"no back-end at {scene.path}"
    assert scene.plane.offers is None
    assert scene.plane.summary()["back_end"] is None


def test_back_end_says_what_it_can_do(scene: Scene) -> None:
    scene.meet()
    assert scene.plane.waiting == ""
    offers = scene.plane.offers
    assert offers is not None
    # Packed rings and the log are not ours to give; MTU and MQ need nothing of it.
    assert offers & Feature.NET_F_MRG_RXBUF
    assert offers & Feature.NET_F_MTU
    assert offers & Feature.NET_F_MQ
    assert not offers & (Feature.F_RING_PACKED | Feature.F_PROTOCOL_FEATURES)
    assert scene.plane.summary()["back_end"]["pid"] == os.getpid()


def test_features_are_remembered_while_the_back_end_is_away(scene: Scene) -> None:
    scene.meet().close()
    scene.look()
    assert scene.plane.waiting
    assert scene.plane.offers is not None


def test_ring_is_given_as_the_master_has_it(scene: Scene) -> None:
    scene.mtu = 9000
    back_end = scene.meet()
    scene.plane.start(1, scene.conf(7))
    scene.talk(back_end)
    table = back_end.last(Request.SET_MEM_TABLE)
    assert table == vu.MemTable((vu.MemRegion(GUEST, SIZE, GUEST, 0),))
    assert back_end.last(Request.SET_VRING_NUM) == vu.VringState(1, 16)
    assert back_end.last(Request.SET_VRING_BASE) == vu.VringState(1, 7)
    area = vu.VringAddr(1, 0, desc=GUEST, used=DEVICE, avail=DRIVER)
    assert back_end.last(Request.SET_VRING_ADDR) == area
    assert back_end.last(Request.SET_VRING_ENABLE) == vu.VringState(1, 1)
    assert back_end.last(Request.NET_SET_MTU) == vu.U64(9000)
    said = FEATURES | Feature.F_PROTOCOL_FEATURES
    assert back_end.last(Request.SET_FEATURES) == vu.U64(said)
    assert scene.plane.status(1).state is AgentRingState.RUNNING


def test_descriptors_are_the_windows_file_the_kick_and_the_call(scene: Scene) -> None:
    back_end = scene.meet()
    conf = scene.conf()
    file = scene.regions[0].file
    assert file is not None
    scene.plane.start(0, conf)
    scene.talk(back_end)
    (memory,) = back_end.fds[Request.SET_MEM_TABLE]
    assert os.fstat(memory).st_ino == os.fstat(file.fd).st_ino
    assert list(file.holders) == [os.getpid()], "this process is the back-end"
    (kick,) = back_end.fds[Request.SET_VRING_KICK]
    (call,) = back_end.fds[Request.SET_VRING_CALL]
    # Kicked once already: what lies in the ring brings no kick of its own.
    assert drain(kick)
    os.eventfd_write(scene.kick, 1)
    assert drain(kick)
    os.eventfd_write(call, 1)
    assert drain(conf.call.fd)  # type: ignore[union-attr]


def test_memory_and_features_are_said_once_for_all_rings(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    assert back_end.heard.count(Request.SET_MEM_TABLE) == 1
    assert back_end.heard.count(Request.SET_FEATURES) == 1
    assert back_end.heard.count(Request.SET_VRING_ENABLE) == 2


def test_driver_with_other_features_is_said_to_the_same_back_end(scene: Scene) -> None:
    back_end = scene.meet()
    scene.plane.start(0, scene.conf())
    scene.stops(0)
    scene.talk(back_end)
    assert scene.stops(0) == 0
    scene.plane.start(0, scene.conf(features=int(Feature.F_VERSION_1)))
    scene.talk(back_end)
    said = Feature.F_VERSION_1 | Feature.F_PROTOCOL_FEATURES
    assert back_end.last(Request.SET_FEATURES) == vu.U64(said)
    assert back_end.heard.count(Request.SET_MEM_TABLE) == 1


@pytest.mark.parametrize("at", [5, 0xFFFF])
def test_stop_waits_for_the_answer_and_reads_the_index(scene: Scene, at: int) -> None:
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    assert scene.stops(0) is None
    assert scene.plane.status(0).state is AgentRingState.RUNNING
    scene.move_used(at)
    back_end.used = at
    back_end.serve()
    assert scene.wants_look
    scene.look()
    assert scene.stops(0) == at
    assert scene.plane.status(0).state is AgentRingState.STOPPED
    assert scene.plane.status(1).state is AgentRingState.RUNNING
    assert back_end.heard.count(Request.GET_VRING_BASE) == 1
    assert not scene.lost


def test_index_is_that_of_the_ring_whatever_the_back_end_says(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    back_end.used = 9
    scene.move_used(5)
    scene.stops(0)
    scene.talk(back_end)
    assert scene.stops(0) == 5


def test_ring_goes_on_after_a_stop(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    scene.move_used(3)
    scene.stops(0)
    scene.talk(back_end)
    assert scene.stops(0) == 3
    scene.plane.start(0, scene.conf(3))
    scene.talk(back_end)
    assert back_end.last(Request.SET_VRING_BASE) == vu.VringState(0, 3)
    assert scene.stops(0) is None


def test_other_memory_is_for_another_connection(scene: Scene) -> None:
    """DPDK goes on with the old file if the new table looks the same."""
    back_end = scene.meet()
    scene.start()
    for index in (0, 1):
        scene.stops(index)
    scene.talk(back_end)
    assert [scene.stops(index) for index in (0, 1)] == [0, 0]
    scene.regions = [scene.region()]
    scene.plane.set_memory(scene.regions)
    assert back_end.was_left
    assert scene.plane.waiting.startswith("no back-end")
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    assert scene.plane.status(0).state is AgentRingState.RUNNING


def test_same_memory_is_for_the_same_connection(scene: Scene) -> None:
    back_end = scene.meet()
    scene.plane.set_memory(list(scene.regions))
    scene.plane.set_memory(())
    assert not back_end.was_left
    scene.plane.set_memory(scene.regions)
    scene.plane.start(0, scene.conf())
    scene.stops(0)
    scene.talk(back_end)
    assert scene.stops(0) == 0
    scene.plane.set_memory(list(scene.regions))
    assert not back_end.was_left


def test_memory_of_a_master_that_is_gone_is_taken_back(scene: Scene) -> None:
    back_end = scene.meet()
    scene.plane.start(0, scene.conf())
    scene.stops(0)
    scene.talk(back_end)
    assert scene.stops(0) == 0
    scene.plane.set_memory(())
    assert back_end.was_left


def test_back_end_without_protocol_features_gets_one_pair(scene: Scene) -> None:
    back_end = scene.come()
    back_end.features = FEATURES
    scene.meet(back_end)
    scene.plane.start(0, scene.conf())
    scene.talk(back_end)
    assert back_end.last(Request.SET_FEATURES) == vu.U64(FEATURES)
    assert Request.SET_VRING_ENABLE not in back_end.heard
    assert scene.plane.status(0).state is AgentRingState.RUNNING


def test_memory_in_many_slots(scene: Scene) -> None:
    back_end = scene.come()
    back_end.protocol |= ProtocolFeature.CONFIGURE_MEM_SLOTS
    back_end.memory_slots = 9
    scene.meet(back_end)
    more = [scene.region(GUEST + (n << 20)) for n in range(1, 9)]
    scene.plane.set_memory([*scene.regions, *more])
    scene.plane.start(0, scene.conf())
    scene.talk(back_end)
    assert back_end.heard.count(Request.ADD_MEM_REG) == 9
    assert Request.SET_MEM_TABLE not in back_end.heard


def test_rings_area_must_lie_in_the_memory(scene: Scene) -> None:
    scene.meet()
    scene.plane.set_memory([scene.region(GUEST + 0x1000)])
    with pytest.raises(RingRefused, match="descriptor table") as refused:
        scene.plane.start(0, scene.conf())
    assert refused.value.state is AgentRingState.BROKEN
    assert scene.plane.status(0).state is AgentRingState.IDLE


def test_end_of_the_agent_closes_the_connection(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    scene.plane.close()
    assert back_end.was_left


def test_end_of_the_agent_leaves_no_thread_also_if_the_connection_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread would read memory, and ring a doorbell, that is unmapped next."""
    doorbell = Doorbell(ctypes.addressof(scene.register), 2, 1)
    back_end = scene.meet()
    conf = scene.conf()
    os.close(conf.call.fd)  # type: ignore[union-attr]
    scene.plane.start(0, replace(conf, call=doorbell))
    scene.talk(back_end)
    assert only_thread("net0/call")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(scene.plane, "_unwatch", fail)
    with pytest.raises(OSError, match="Input/output error"):
        scene.plane.close()
    assert is_gone("net0/call")
    assert back_end.was_left


def test_ring_without_a_call_and_without_a_kick(scene: Scene) -> None:
    """A driver without interrupts, and a binding without them: the thread kicks."""
    back_end = scene.meet()
    conf = scene.conf()
    os.close(conf.call.fd)  # type: ignore[union-attr]
    scene.plane.start(0, replace(conf, call=None, kick_fd=None))
    scene.talk(back_end)
    assert back_end.last(Request.SET_VRING_CALL) == vu.VringFd(0, nofd=True)
    (kick,) = back_end.fds[Request.SET_VRING_KICK]
    assert drain(kick)


def test_counts_that_only_the_back_end_has_are_named(scene: Scene) -> None:
    back_end = scene.meet()
    scene.plane.start(0, scene.conf())
    scene.talk(back_end)
    not_counted = scene.plane.summary()["not_counted"]
    assert set(not_counted) == {"packets", "octets", "drops", "kicks", "calls"}


def test_calls_that_our_thread_passes_on_are_counted(scene: Scene) -> None:
    doorbell = Doorbell(ctypes.addressof(scene.register), 2, 1)
    back_end = scene.meet()
    conf = scene.conf()
    os.close(conf.call.fd)  # type: ignore[union-attr]
    scene.plane.start(0, replace(conf, call=doorbell))
    scene.talk(back_end)
    (call,) = back_end.fds[Request.SET_VRING_CALL]
    os.eventfd_write(call, 1)
    wait_for(lambda: scene.register.value == doorbell.value, "the doorbell is rung")
    wait_for(lambda: scene.plane.status(0).stats.calls == 1, "the call is counted")
    assert "calls" not in scene.plane.summary()["not_counted"]
