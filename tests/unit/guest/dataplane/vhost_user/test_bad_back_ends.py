# SPDX-License-Identifier: Apache-2.0
"""Back-ends that break the protocol, hang or die: each ends alone, and says why."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.back_end import FakeBackEnd
from tests.unit.guest.dataplane.vhost_user.scene import GUEST, Scene
from vhostpci_guest.dataplane.vhost_user import dialogue, pause
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.vhost_user import HeaderFlag, Request
from vhostpci_shared.virtio import Feature

QUESTIONS = (
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
)
CHECKED = (*(Request.SET_MEM_TABLE, Request.SET_VRING_ADDR, Request.SET_VRING_ENABLE),)
MANY = 32
REPLY = vu.reply(Request.GET_FEATURES, vu.U64(0))


def silence() -> None:
    """Answer nothing."""


def answer(data: bytes) -> Callable[[], bytes]:
    """Return what answers with these bytes."""
    return lambda: data


def nine_bytes() -> bytes:
    header = vu.Header(Request.GET_FEATURES, vu.VERSION | HeaderFlag.REPLY, 9)
    return bytes(header) + bytes(9)


WRONG = {
    "another request": vu.reply(Request.GET_QUEUE_NUM, vu.U64(0)),
    "no reply": vu.message(Request.GET_FEATURES, vu.U64(0)),
    "other version": bytes(vu.Header(1, 2 | HeaderFlag.REPLY, 8)) + bytes(8),
    "too long": bytes(vu.Header(1, vu.VERSION | HeaderFlag.REPLY, 1 << 20)),
    "nine bytes": nine_bytes(),
    "empty": vu.reply(Request.GET_FEATURES, vu.Empty()),
    "twice": REPLY + REPLY + REPLY,
}


def loses(scene: Scene, back_end: FakeBackEnd) -> None:
    """Check that the agent has closed the connection, and takes no other for now."""
    assert back_end.was_left
    assert "one is taken again soon" in scene.plane.waiting


@pytest.mark.parametrize("request_", QUESTIONS, ids=lambda one: one.name)
def test_question_without_an_answer(scene: Scene, request_: Request) -> None:
    back_end = scene.come()
    back_end.instead[request_] = silence
    scene.talk(back_end)
    assert scene.plane.waiting.startswith("no back-end")
    scene.tick(dialogue.ANSWER - 1)
    assert not back_end.was_left
    scene.tick()
    loses(scene, back_end)
    assert f"has not answered {request_.name} in time" in scene.plane.waiting


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_wrong_answer(scene: Scene, data: bytes) -> None:
    back_end = scene.come()
    back_end.instead[Request.GET_FEATURES] = answer(data)
    for _ in range(4):
        scene.look()
        if back_end.was_left:
            break
    loses(scene, back_end)


def test_descriptors_that_it_sends_are_closed(scene: Scene) -> None:
    back_end = scene.come()
    scene.look()
    before = len(os.listdir("/proc/self/fd"))
    back_end.send(REPLY, (0, 1, 2))
    scene.look()
    loses(scene, back_end)
    assert "it sends descriptors" in scene.plane.waiting
    assert len(os.listdir("/proc/self/fd")) == before - 1  # our end of the connection


def test_answer_in_pieces_is_waited_for(scene: Scene) -> None:
    back_end = scene.come()
    back_end.instead[Request.GET_FEATURES] = answer(b"")
    scene.look()
    for byte in vu.reply(Request.GET_FEATURES, vu.U64(Feature.F_VERSION_1)):
        back_end.send(bytes([byte]))
        scene.look()
    scene.talk(back_end)
    assert scene.plane.waiting == ""
    assert scene.plane.offers == Feature.F_VERSION_1 | Feature.NET_F_MTU


def test_flood_is_read_a_little_at_a_time_and_ends(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    back_end.send(REPLY * 5000)
    scene.look()
    assert scene.lost
    assert back_end.was_left
    assert scene.plane.status(0).state is AgentRingState.STOPPED


def test_unasked_message_while_rings_run_takes_the_rings(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    scene.move_used(4)
    back_end.send(REPLY)
    scene.look()
    assert scene.lost
    status = scene.plane.status(1)
    assert status.state is AgentRingState.STOPPED
    assert (status.index, status.index_known) == (4, False)
    assert "nothing was asked" in status.reason
    assert scene.stops(1) == 4


@pytest.mark.parametrize("request_", CHECKED, ids=lambda one: one.name)
def test_back_end_that_refuses(scene: Scene, request_: Request) -> None:
    back_end = scene.meet()
    back_end.refuses.add(request_)
    scene.start()
    for _ in range(4):
        scene.look()
        if back_end.was_left:
            break
    assert scene.lost
    assert f"answer to {request_.name}: it refuses that" in scene.plane.status(0).reason


def test_back_end_that_does_not_stop_keeps_the_rings_from_others(scene: Scene) -> None:
    hung = scene.meet()
    scene.start()
    scene.talk(hung)
    hung.instead[Request.GET_VRING_BASE] = silence
    assert scene.stops(0) is None
    scene.tick(dialogue.BASE - 1)
    assert scene.stops(0) is None
    scene.tick()
    assert scene.stops(0) == 0
    assert scene.plane.status(1).state is AgentRingState.STOPPED
    # It is told that this is the end, and still has the memory.
    assert hung.was_left
    assert "still has the memory: end it" in scene.plane.waiting
    second = scene.come()
    scene.tick(20)
    assert second.was_left
    assert "still has the memory" in scene.plane.waiting
    hung.close()
    assert scene.wants_look
    scene.look()
    scene.tick(pause.SHORT)
    scene.meet()
    assert scene.plane.waiting == ""


@pytest.mark.parametrize("count", range(15))
def test_back_end_that_dies_in_the_middle_of_a_start(scene: Scene, count: int) -> None:
    back_end = scene.meet()
    scene.plane.start(0, scene.conf())
    for _ in range(count):
        back_end.connection.recv(12)  # some message or a part of it
    back_end.close()
    scene.look()
    assert scene.lost
    assert scene.plane.status(0).state is AgentRingState.STOPPED
    assert not scene.plane.status(0).index_known
    scene.tick(pause.SHORT)
    scene.meet()
    scene.plane.start(0, scene.conf())
    assert scene.plane.status(0).state is AgentRingState.RUNNING


@pytest.mark.parametrize("count", range(5))
def test_back_end_that_dies_while_it_says_what_it_can_do(
    scene: Scene, count: int
) -> None:
    back_end = scene.come()
    for _ in range(count):
        scene.look()
        back_end.serve()
    back_end.close()
    scene.look()
    assert not scene.plane.status(0).reason
    scene.tick(pause.SHORT)
    scene.meet()
    assert scene.plane.waiting == ""


def test_ring_that_is_stopping_when_the_back_end_dies(scene: Scene) -> None:
    back_end = scene.meet()
    scene.start()
    scene.talk(back_end)
    assert scene.stops(0) is None
    scene.move_used(2)
    back_end.close()
    scene.look()
    assert scene.stops(0) == 2


def test_second_back_end_is_turned_away_and_said_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    first = scene.meet()
    caplog.clear()
    for _ in range(3):
        second = scene.come()
        scene.tick()
        assert second.was_left
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "a second back-end" in record.getMessage()
    assert not first.was_left
    assert scene.plane.waiting == ""


def test_back_end_that_comes_and_goes_does_not_fill_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(5):
        scene.meet().close()
        scene.look()
        scene.tick(pause.SHORT)
    assert len(caplog.records) == 2


def test_pause_after_a_fault_grows_until_one_is_sound(scene: Scene) -> None:
    pauses = []
    for _ in range(3):
        back_end = scene.meet()
        back_end.send(REPLY)
        scene.look()
        count = 0
        while "taken again soon" in scene.plane.waiting:
            scene.tick()
            count += 1
        pauses.append(count)
    assert pauses == [pause.FIRST, 2 * pause.FIRST, 4 * pause.FIRST]
    back_end = scene.meet()
    scene.tick(pause.SOUND)
    back_end.send(REPLY)
    scene.look()
    scene.tick(pause.FIRST)
    assert "taken again soon" not in scene.plane.waiting


def test_pause_after_a_fault_is_as_long_if_rings_ran(scene: Scene) -> None:
    """It goes at once when it is told to, and comes again; each time rings stop."""
    pauses = []
    for _ in range(3):
        back_end = scene.meet()
        back_end.refuses.add(Request.SET_MEM_TABLE)
        scene.start()
        back_end.serve()
        scene.look()
        back_end.close()
        scene.look()
        count = 0
        while "taken again soon" in scene.plane.waiting:
            assert "refuses" in scene.plane.waiting
            scene.tick()
            count += 1
        pauses.append(count)
    assert pauses == [pause.FIRST, 2 * pause.FIRST, 4 * pause.FIRST]


@pytest.fixture
def large(tmp_path: Path) -> Iterator[tuple[Scene, FakeBackEnd]]:
    """A device whose start is more than a socket's buffer holds, and its back-end."""
    with Scene(tmp_path / "large", pairs=MANY) as scene:
        back_end = scene.come()
        back_end.queue_pairs = MANY
        scene.meet(back_end)
        for index in range(2 * MANY):
            scene.plane.start(index, scene.conf())
        yield scene, back_end


def test_back_end_that_reads_nothing_costs_no_time(
    large: tuple[Scene, FakeBackEnd],
) -> None:
    scene, _ = large
    assert not scene.wants_look
    scene.tick(dialogue.ANSWER)
    assert "has not answered SET_MEM_TABLE" in scene.plane.status(0).reason
    assert "still has the memory: end it" in scene.plane.waiting


def test_what_does_not_fit_is_sent_later(large: tuple[Scene, FakeBackEnd]) -> None:
    scene, back_end = large
    for _ in range(20):
        scene.talk(back_end)
    assert back_end.heard.count(Request.SET_VRING_ENABLE) == 2 * MANY
    assert len(back_end.fds[Request.SET_VRING_KICK]) == 2 * MANY
    assert scene.plane.status(2 * MANY - 1).state is AgentRingState.RUNNING


def test_back_end_without_mrg_rxbuf_does_not_offer_it(scene: Scene) -> None:
    back_end = scene.come()
    back_end.features &= ~Feature.NET_F_MRG_RXBUF
    scene.meet(back_end)
    offers = scene.plane.offers
    assert offers is not None
    assert not offers & Feature.NET_F_MRG_RXBUF


def test_too_many_regions_are_a_message(scene: Scene) -> None:
    scene.meet()
    more = [scene.region(GUEST + (n << 20)) for n in range(1, 9)]
    scene.plane.set_memory([*scene.regions, *more])
    assert "takes 8 regions of memory, and the master has 9" in scene.plane.waiting


def test_memory_without_a_file_is_a_message(scene: Scene) -> None:
    scene.meet()
    scene.plane.set_memory([scene.region(file=False)])
    assert "no file of the master's memory" in scene.plane.waiting


def test_fewer_queue_pairs_than_the_device_has_are_a_message(tmp_path: Path) -> None:
    with Scene(tmp_path / "s", pairs=2) as scene:
        back_end = scene.come()
        back_end.queue_pairs = 1
        scene.meet(back_end)
        assert "it has 1 queue pair(s), and the device has 2" in scene.plane.waiting
