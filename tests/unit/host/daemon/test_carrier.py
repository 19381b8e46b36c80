# SPDX-License-Identifier: Apache-2.0
"""When the master's card loses its carrier because of its agent, and has it again."""

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.frontend import Dropped, FrontEnd, RingAt, region
from tests.unit.host.daemon.served import (
    Served,
    Through,
    agent_process,
    answered,
    beat,
)
from vhostpci_host import sockets
from vhostpci_host.daemon import carrier
from vhostpci_host.daemon.carrier import RETURN
from vhostpci_host.device.agent_view import HANGS
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import Agent, AgentState
from vhostpci_shared.vhost_user import Request

GRACE = 3
BEAT = 0.2
LATE = 0.5
"""Seconds after which a tick has seen what there is, and one before that."""
BACK = "the master may connect again"


class Process:
    """An agent as a process, which beats until it stops or ends."""

    def __init__(self, served: Served, state: AgentState = AgentState.READY) -> None:
        self._served = served
        self.entry = Agent(state=state)
        """What it says of itself."""
        self._connection = agent_process(served)
        self._beat()

    def _beat(self) -> None:
        # Each one has its time to read the handshake.
        with contextlib.suppress(BlockingIOError):
            self._connection.recv(4096)
        beat(self._served, self.entry)
        self._timer = self._served.loop.call_later(BEAT, self._beat)

    def stop(self) -> None:
        self._timer.cancel()

    def go_on(self) -> None:
        self._beat()

    def end(self) -> None:
        self.stop()
        self._served.clients.remove(self._connection)
        self._connection.close()
        self._served.loop.advance()


@pytest.fixture
def returns(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the front-end's command line says that it comes back: it does."""
    says = [True]
    monkeypatch.setattr(carrier, "says_reconnect", lambda *_: says[-1])
    return says


Serve = Callable[..., Served]


@pytest.fixture
def serve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, returns: list[bool]
) -> Iterator[Serve]:
    """Serve a device that has these options; `returns` holds unless it is changed."""
    caplog.set_level("INFO")
    with contextlib.ExitStack() as undo:

        def new(**options: Any) -> Served:
            served = Served(tmp_path, caplog, **options)
            undo.callback(served.close)
            return served

        yield new


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


def front_end(served: Served, **options: Any) -> FrontEnd:
    """Connect a QEMU whose guest's driver is not loaded."""
    arena = served.server.device.store.file.fileno()
    memory = [(region(served.config.memory), arena)]
    found = FrontEnd(Through(served), memory, **options)
    found.connect()
    return found


def load(served: Served, qemu: FrontEnd) -> None:
    qemu.driver_ok([RingAt.nth(0), RingAt.nth(1)])
    served.loop.advance(0.1)


def has_carrier(qemu: FrontEnd) -> bool:
    try:
        qemu.ask(Request.GET_FEATURES)
    except Dropped:
        return False
    return True


def is_open(served: Served) -> bool:
    """Whether a QEMU would get an answer; it would never wait for one."""
    try:
        client = served.connect(served.config.vhost_user)
    except FileNotFoundError:
        return False
    client.send(vu.message(Request.GET_FEATURES))
    served.loop.advance()
    assert answered(client) is not None, "a QEMU would stand still"
    client.close()
    served.loop.advance()
    return True


def test_period_begins_when_rings_run(served: Served) -> None:
    """A guest may need any time to boot."""
    with front_end(served) as qemu:
        served.loop.advance(1000.0)
        assert has_carrier(qemu)
        load(served, qemu)
        served.loop.advance(GRACE - LATE)
        assert has_carrier(qemu)
        served.loop.advance(2 * LATE)
        assert not has_carrier(qemu)
    assert not is_open(served)
    assert served.said("dropped: there has been no agent for 3 s") == 1
    described = served.server.carrier.describe()
    assert described["off"]
    assert described["waits_for"] == os.getpid()


def test_driver_that_is_unloaded_in_time_begins_it_again(served: Served) -> None:
    with front_end(served) as qemu:
        for _ in range(5):
            load(served, qemu)
            served.loop.advance(GRACE - LATE)
            for index in range(2):
                qemu.stop_ring(index)
            served.loop.advance(LATE)
        assert has_carrier(qemu)


def test_carrier_comes_back_with_an_agent(served: Served) -> None:
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(GRACE + LATE)
        assert not has_carrier(qemu)
    assert not is_open(served)
    served.loop.advance(1000.0)
    assert not is_open(served)
    Process(served)
    served.loop.advance(LATE)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(100.0)
        assert has_carrier(qemu)
    assert served.said(BACK) == 1


def test_agent_that_is_replaced_in_time_is_not_missed(served: Served) -> None:
    with front_end(served) as qemu:
        load(served, qemu)
        for _ in range(5):
            agent = Process(served)
            served.loop.advance(10.0)
            agent.end()
            served.loop.advance(GRACE - LATE)
        assert has_carrier(qemu)
        served.loop.advance(2 * LATE)
        assert not has_carrier(qemu)


def test_agent_that_hangs_is_missed_since_its_last_word(served: Served) -> None:
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(10.0)
        agent.stop()
        served.loop.advance(GRACE - LATE)
        agent.go_on()
        served.loop.advance(1.0)
        agent.stop()
        served.loop.advance(GRACE - LATE)
        assert has_carrier(qemu)
        served.loop.advance(2 * LATE)
        assert not has_carrier(qemu)
    served.loop.advance(100.0)
    assert not is_open(served)
    agent.go_on()
    served.loop.advance(LATE)
    assert is_open(served)


def test_agent_that_is_late_by_a_beat_is_not_missed(serve: Serve) -> None:
    served = serve(carrier_grace=1)
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        for _ in range(20):
            served.loop.advance(BEAT)
            agent.stop()
            served.loop.advance(HANGS - 0.1)
            agent.go_on()
        assert has_carrier(qemu)


def test_time_in_which_the_daemon_stood_still_does_not_count(served: Served) -> None:
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(1.0)
        agent.stop()
        served.loop.advance(0.25)  # its last beat has been seen
        served.loop.now += 10.0
        served.loop.advance(LATE)
        agent.go_on()
        served.loop.advance(10.0)
        assert has_carrier(qemu)


def test_carrier_may_stay(serve: Serve) -> None:
    served = serve(carrier_grace=None)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(1000.0)
        assert has_carrier(qemu)
    assert served.said("keeps its carrier") == 0


def test_period_is_an_option(serve: Serve) -> None:
    served = serve(carrier_grace=60)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(60 - LATE)
        assert has_carrier(qemu)
        served.loop.advance(2 * LATE)
        assert not has_carrier(qemu)


# Front-ends that keep their carrier.


def keeps_carrier(served: Served, qemu: FrontEnd, why: str) -> None:
    """Check that it keeps its carrier for `why`, which is told each time."""
    load(served, qemu)
    for _ in range(2):
        served.loop.advance(100.0)
        assert has_carrier(qemu)
        assert why in served.server.carrier.describe()["problem"]
        agent = Process(served)
        served.loop.advance(1.0)
        assert served.server.carrier.describe()["problem"] is None
        agent.end()
    # The second time it is only counted: the text is the same.
    assert served.said("keeps its carrier although there is no agent") == 2
    assert served.said("1 more lines like this one") == 1


def test_front_end_that_would_not_come_back(
    served: Served, returns: list[bool]
) -> None:
    returns.append(False)
    with front_end(served) as qemu:
        keeps_carrier(served, qemu, "would connect again (reconnect=)")
    assert is_open(served)


def test_front_end_with_packed_rings(served: Served) -> None:
    with front_end(served, packed=True) as qemu:
        keeps_carrier(served, qemu, "its rings are packed")


def test_front_end_that_cannot_be_watched(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "peer_pid", lambda _: 0)
    with front_end(served) as qemu:
        keeps_carrier(served, qemu, "its process is of another PID namespace")


def test_front_end_that_is_hidden_from_us(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "peer_pid", lambda _: 2**22 + 1)
    with front_end(served) as qemu:
        keeps_carrier(served, qemu, "the daemon cannot see pid 4194305 in /proc")


def test_front_end_whose_end_nothing_tells(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with front_end(served) as qemu:
        why = f"nothing would tell when pid {os.getpid()} ends"
        keeps_carrier(served, qemu, f"{why} (Operation not permitted)")


def test_cloud_hypervisor(served: Served, named: Callable[[str], None]) -> None:
    """It goes on at the avail index, and would forget what was not taken."""
    named("cloud-hypervisor")
    with front_end(served) as qemu:
        keeps_carrier(served, qemu, "Cloud Hypervisor may not go on")


@pytest.fixture
def named() -> Iterator[Callable[[str], None]]:
    """Give our process, the front-end's, a name."""
    comm = Path(f"/proc/{os.getpid()}/comm")
    before = comm.read_text()

    def rename(name: str) -> None:
        comm.write_text(name)

    yield rename
    comm.write_text(before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qemu-system-x86_64", True), ("kvm", True), ("stratovirt", False)],
)
def test_front_end_that_was_seen_to_come_back(
    served: Served,
    returns: list[bool],
    named: Callable[[str], None],
    name: str,
    expected: bool,
) -> None:
    """Others may give up after some time."""
    named(name)
    returns.append(False)
    with front_end(served) as qemu:
        load(served, qemu)
    served.loop.advance(1.0)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(GRACE + LATE)
        assert has_carrier(qemu) != expected


@pytest.mark.parametrize("loaded", [True, False])
def test_front_end_that_comes_again_otherwise_may_not_have_come_by_itself(
    served: Served,
    returns: list[bool],
    named: Callable[[str], None],
    loaded: bool,
) -> None:
    """Later it may be its user's doing; and a QEMU that starts tries several times."""
    named("qemu-system-x86_64")
    returns.append(False)
    with front_end(served) as qemu:
        if loaded:
            load(served, qemu)
    served.loop.advance(RETURN if loaded else 1.0)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(100.0)
        assert has_carrier(qemu)


# Its process.


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """The process of the front-ends that connect."""
    with subprocess.Popen(["sleep", "600"]) as process:
        monkeypatch.setattr(sockets, "peer_pid", lambda _: process.pid)
        yield process
        process.kill()


def test_next_master_is_welcome_when_the_process_has_ended(
    served: Served, process: subprocess.Popen[bytes]
) -> None:
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(GRACE + LATE)
        assert not has_carrier(qemu)
    process.kill()
    process.wait()
    served.loop.advance()
    with front_end(served) as qemu:
        served.loop.advance(100.0)
        assert has_carrier(qemu)


def test_path_that_cannot_be_had_is_tried_again(
    served: Served, process: subprocess.Popen[bytes]
) -> None:
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(GRACE + LATE)
    path = served.config.vhost_user
    path.write_text("not a socket")
    process.kill()
    process.wait()
    served.loop.advance(10.0)
    assert served.said(f"cannot have its carrier back: {path} is there") == 1
    path.unlink()
    served.loop.advance(LATE)
    assert is_open(served)


# A front-end that listens.


def test_front_end_that_listens_is_not_connected_to(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "front-end"
    served = serve(connect=path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        server.setblocking(False)
        served.loop.advance(1.25)
        with accepted(served, server) as qemu:
            load(served, qemu)
            served.loop.advance(GRACE + LATE)
            assert not has_carrier(qemu)
        served.loop.advance(100.0)
        with pytest.raises(BlockingIOError):
            server.accept()
        Process(served)
        served.loop.advance(1.25)
        with accepted(served, server) as qemu:
            load(served, qemu)
            served.loop.advance(100.0)
            assert has_carrier(qemu)


def accepted(served: Served, server: socket.socket) -> FrontEnd:
    arena = served.server.device.store.file.fileno()
    memory = [(region(served.config.memory), arena)]
    found = FrontEnd(Through(served, server.accept()[0]), memory)
    found.connect()
    return found
