# SPDX-License-Identifier: Apache-2.0
"""One device's sockets, and what comes to them, without a daemon around it."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.frontend import FrontEnd, RingAt, region
from tests.fakes.thief import steal
from tests.unit.host.daemon.served import (
    Served,
    Through,
    agent_process,
    answered,
    beat,
    is_served,
    read_all,
)
from vhostpci_host import sockets
from vhostpci_host.daemon.seats import HUNG
from vhostpci_host.daemon.server import SUSPICION
from vhostpci_host.device.agent_view import HANGS
from vhostpci_host.device.status import state
from vhostpci_host.device.windows import ShownWindows
from vhostpci_host.errors import HostError
from vhostpci_host.ivshmem.linger import LINGER
from vhostpci_host.vhost_user.connection import SILENT
from vhostpci_shared import ivshmem
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request


@pytest.fixture
def served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Served]:
    caplog.set_level("INFO")
    served = Served(tmp_path, caplog)
    yield served
    served.close()


def storm(served: Served, attempt: Callable[[], socket.socket], seconds: float) -> int:
    """Connect again as soon as it ended, like a QEMU that starts; return how often."""
    attempts, end = 0, served.loop.now + seconds
    while served.loop.now < end:
        client = attempt()
        attempts += 1
        while answered(client) is None and served.loop.now < end:
            served.loop.advance(0.01)
        client.close()
        served.loop.advance(0.003)
    return attempts


def test_master_that_rejects_us_comes_rarely_and_is_told_of_once(
    served: Served,
) -> None:
    """As with queues=2 for a device that has one queue pair."""
    assert storm(served, served.master, 60.0) < 45
    assert served.said("front-end connected") == 1
    assert served.said("front-end disconnected") == 1
    assert served.said("rejects us") == 1


def test_second_master_comes_rarely_and_is_told_of_once(served: Served) -> None:
    first = served.master()
    assert answered(first)
    assert storm(served, served.master, 50.0) < 40
    assert served.said("refused: ") == 1
    first.send(vu.message(Request.GET_FEATURES))
    served.loop.advance()
    assert answered(first)


def test_master_at_the_slaves_socket_is_left_without_an_answer(
    served: Served,
) -> None:
    def attempt() -> socket.socket:
        client = served.slave()
        client.setblocking(False)
        client.send(vu.message(Request.GET_FEATURES))
        served.loop.advance()
        return client

    assert storm(served, attempt, 2 * LINGER) < 6
    assert served.said("which no slave does") == 1
    assert served.said("slave connected") == 1


def test_slave_may_come_after_a_master_at_its_socket(served: Served) -> None:
    stranger = served.slave()
    stranger.send(vu.message(Request.GET_FEATURES))
    served.loop.advance()
    slave = served.slave()
    served.loop.advance(SUSPICION)
    assert ivshmem.decode(slave.recv(8)) == ivshmem.VERSION


def test_master_that_is_dropped_each_second_is_told_of_once(served: Served) -> None:
    """As with rings outside of its memory: QEMU tries again each second."""
    for _ in range(30):
        client = served.connect(served.config.vhost_user)
        client.send(vu.message(Request.SET_VRING_NUM, vu.VringState(7, 256)))
        served.loop.advance()
        assert answered(client) is False
        served.loop.advance(1.0)
    lines = ("front-end connected", "front-end disconnected", "dropped: ")
    assert [served.said(text) for text in lines] == [1, 1, 1]
    assert served.said("rejects us") == 0


def test_front_end_that_listens_is_connected_to_once_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "front-end"
    served = Served(tmp_path, caplog, connect=path)
    with contextlib.closing(served):
        served.loop.advance(3.0)
        assert "is not there yet" in served.server.connect_problem
        assert not served.config.vhost_user.exists()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
            server.listen()
            # It is killed, and comes back, without limit.
            for _ in range(20):
                served.loop.advance(1.25)
                with server.accept()[0] as theirs:
                    theirs.send(vu.message(Request.GET_FEATURES))
                    served.loop.advance()
                    theirs.setblocking(False)
                    assert answered(theirs)
                    assert served.server.connect_problem == ""
                served.loop.advance()
            served.loop.advance(1.25)
            # One connection at a time: no second one waits in its queue.
            server.accept()[0].close()
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()
    assert path.exists(), "the front-end's socket is not ours to remove"


def test_master_with_a_ring_outside_its_memory_stays_and_is_told_of_once(
    served: Served,
) -> None:
    """A QEMU that is dropped for that does the same again each second.

    Its guest may be started again, with other words for its kernel.
    """
    arena = served.server.device.store.file.fileno()
    memory = [(region(served.config.memory), arena)]
    inside = [RingAt.nth(0), RingAt.nth(1)]
    with FrontEnd(Through(served), memory) as front_end:
        front_end.connect()
        front_end.driver_ok([inside[0], replace(inside[1], used=3 << 40)])
        served.loop.advance(30.0)
        front_end.ask(Request.GET_FEATURES)
        assert state(served.server.device) == "master's rings cannot be served"
        assert not served.server.device.rings_run
        assert served.said("refused SET_VRING_KICK: used ring: address") == 1
        for index in (0, 1):
            assert front_end.stop_ring(index) == 0
        front_end.driver_ok(inside)
        served.loop.advance(0.1)
        assert served.server.device.rings_run
    assert served.said("dropped: ") == 0


@pytest.fixture(params=["vhost_user", "ivshmem", "control"])
def path(request: pytest.FixtureRequest, served: Served) -> Path:
    found: Path = getattr(served.config, request.param)
    return found


def reaches_us(served: Served, path: Path) -> bool:
    client = served.connect(path)
    client.send(vu.message(Request.GET_FEATURES))
    served.loop.advance()
    return bool(answered(client))


def test_stolen_socket_is_noticed_and_made_again(served: Served, path: Path) -> None:
    with steal(path):
        served.loop.advance(2.0)
        assert served.said(f"{path} was replaced by pid {os.getpid()}") == 1
        assert reaches_us(served, path)


def test_thief_that_removes_the_socket_at_its_end_is_noticed(
    served: Served, path: Path
) -> None:
    with steal(path):
        served.loop.advance(2.0)
    path.unlink()
    served.loop.advance(2.0)
    assert served.said(f"{path} was removed") == 1
    assert reaches_us(served, path)


def test_file_in_the_sockets_place_is_left_alone(served: Served, path: Path) -> None:
    path.unlink()
    path.write_text("not a socket")
    served.loop.advance(10.0)
    assert served.said(f"cannot listen at {path} again") == 1
    assert path.read_text() == "not a socket"
    path.unlink()
    served.loop.advance(2.0)
    assert reaches_us(served, path)


def test_path_that_could_not_be_had_is_tried_again_though_no_name_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int, group: int | None) -> socket.socket:
        raise HostError("no descriptors")

    # By this clock no change is recent, so that none is looked at twice.
    served = Served(tmp_path, caplog, clock=lambda: 2**63)
    path = served.config.vhost_user
    with monkeypatch.context() as patch:
        patch.setattr(sockets, "listen_again", refuse)
        path.unlink()
        served.loop.advance(5.0)
    assert not path.exists()
    served.loop.advance(1.0)
    assert reaches_us(served, path)
    served.close()


def test_socket_in_a_directory_of_its_own_is_watched_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "apart" / "socket"
    path.parent.mkdir()
    served = Served(tmp_path, caplog, clock=lambda: 2**63, socket_path=path)
    served.loop.advance(2.0)
    time.sleep(0.02)  # until the kernel's clock has stepped
    with steal(path):
        served.loop.advance(2.0)
        assert served.said(f"{path} was replaced by pid {os.getpid()}") == 1
    served.close()


def test_start_removes_the_windows_sockets_of_a_daemon_that_was_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing that is used, or is no such socket."""
    names = ["dev.ivshmem.4711", "dev.ivshmem.4712", "dev.ivshmem.x", "dev2.ivshmem.5"]
    used, *unused = (tmp_path / name for name in names)
    file = tmp_path / "dev.ivshmem.4713"
    file.touch()
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.fspath(used))
        listener.listen()
        for path in unused:
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(os.fspath(path))
        undo.callback(Served(tmp_path, caplog).close)
        assert [path.exists() for path in (used, *unused)] == [True, False, True, True]
        assert file.exists()


def test_end_leaves_a_stolen_socket_to_its_thief(served: Served, path: Path) -> None:
    with steal(path):
        served.server.close()
        assert path.is_socket()


SOME = vu.message(Request.GET_FEATURES)


@pytest.mark.parametrize("sent", [b"", SOME[:1], SOME[:6], SOME + SOME[:6], SOME])
def test_front_end_that_hangs_makes_room_for_another(
    served: Served, sent: bytes
) -> None:
    hung = served.connect(served.config.vhost_user)
    hung.send(sent)
    served.loop.advance(SILENT - 1.0)
    second = served.master()
    assert answered(second) is False
    served.loop.advance(2.0)
    assert served.said(f"front-end (pid {os.getpid()}) ") > 0
    assert answered(served.master())
    assert served.said("has to go") == 1


def test_front_end_that_is_quiet_after_its_introduction_keeps_its_place(
    served: Served,
) -> None:
    """A guest without a driver leaves its QEMU with nothing to say."""
    first = served.master()
    served.loop.advance(1000.0)
    assert answered(first)
    assert answered(served.master()) is False
    assert served.said("does not go on") == 0


def test_message_that_begins_late_has_its_time(served: Served) -> None:
    first = served.master()
    served.loop.advance(1000.0)
    first.send(SOME[:6])
    served.loop.advance(SILENT - 1.0)
    assert answered(served.master()) is False
    served.loop.advance(2.0)
    assert served.said("half a message") == 1
    assert answered(served.master())


def test_silent_front_end_is_asked_whether_it_is_a_slave(served: Served) -> None:
    served.connect(served.config.vhost_user)
    served.loop.advance(3 * SILENT)
    assert served.said("says nothing: is it a slave's QEMU? Its socket is NAME.iv") == 1


def test_slaves_qemu_at_the_masters_socket_is_refused_before_it_has_to_go(
    served: Served,
) -> None:
    """That QEMU would read without end from a connection that is closed at once."""
    stray = served.connect(served.config.vhost_user)
    served.loop.advance(SILENT)
    assert answered(served.master())
    assert ivshmem.decode(stray.recv(8)) == ivshmem.REFUSED
    with pytest.raises(BlockingIOError):
        stray.recv(1)


def test_agent_that_hangs_makes_room_for_another(served: Served) -> None:
    hung = agent_process(served)
    for _ in range(20):
        read_all(hung)
        beat(served)
        served.loop.advance(HANGS - 0.1)
    assert not is_served(agent_process(served))
    beat(served)
    served.loop.advance(1.0)
    assert is_served(agent_process(served))
    assert served.said("has to go: it has said nothing for 0.7 s") == 1


def test_agent_that_has_not_served_yet_has_more_time(served: Served) -> None:
    read_all(agent_process(served))
    served.loop.advance(HUNG - 1.0)
    assert not is_served(agent_process(served))
    served.loop.advance(1.0)
    assert is_served(agent_process(served))
    assert served.said("has to go: it has said nothing for 5 s") == 1


def test_agent_that_never_reads_makes_room_for_another(served: Served) -> None:
    agent_process(served)
    assert not is_served(agent_process(served))
    served.loop.advance(HUNG)
    assert is_served(agent_process(served))


def test_slaves_qemu_without_an_agent_keeps_its_place(served: Served) -> None:
    qemu = served.slave()
    read_all(qemu)
    served.loop.advance(1000.0)
    assert not is_served(served.slave())
    assert not is_served(agent_process(served))


def test_slaves_qemu_that_never_reads_makes_room_for_another(served: Served) -> None:
    served.slave()
    assert not is_served(served.slave())
    # It may be between `chardev-add` and `device_add`.
    served.loop.advance(LINGER - 1.0)
    assert not is_served(served.slave())
    served.loop.advance(1.0)
    assert is_served(served.slave())


def test_agent_that_beats_and_never_reads_makes_room_for_another(
    served: Served,
) -> None:
    agent_process(served)
    for _ in range(10):
        beat(served)
        served.loop.advance(HUNG / 10)
    assert is_served(agent_process(served))
    assert served.said("has to go: it has not read what it was sent") == 1


def test_slave_that_has_to_go_loses_its_windows_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor could not have them."""
    disconnected: list[int] = []
    monkeypatch.setattr(
        ShownWindows, "disconnect", lambda _, pid: disconnected.append(pid)
    )
    agent_process(served)
    served.loop.advance(HUNG)
    assert is_served(agent_process(served))
    assert disconnected == [os.getpid()]


# One that connects again.


def test_front_end_that_connects_again_is_not_refused_because_of_itself(
    served: Served,
) -> None:
    """The loop may tell of the new connection before it tells of the old one's end."""
    served.master().close()
    assert answered(served.master())
    assert served.said("refused") == 0


def test_slave_that_connects_again_is_not_refused_because_of_itself(
    served: Served,
) -> None:
    for _ in range(3):
        slave = served.slave()
        assert is_served(slave)
        slave.close()
    assert served.said("refused") == 0


def test_front_end_that_leaves_three_times_rejects_us(served: Served) -> None:
    for told in (0, 0, 1, 1):
        served.master().close()
        served.loop.advance(1.0)
        assert served.said("rejects us") == told


def test_control_socket_is_for_no_other_user(served: Served) -> None:
    assert served.config.control.stat().st_mode & 0o777 == 0o600


def test_end_removes_the_sockets(served: Served, path: Path) -> None:
    assert path.is_socket()
    served.server.close()
    assert not path.exists()
