# SPDX-License-Identifier: Apache-2.0
"""The status socket: short and long answers, slow clients, killed agents."""

import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.fakes.clock import Clock
from tests.fakes.listening import before_listen
from tests.fakes.source import FakeSource
from tests.unit.guest.loop import in_loop
from tests.waiting import TIMEOUT, returns
from vhostpci_guest import status_socket
from vhostpci_guest.agent import Agent
from vhostpci_guest.cli.main import main
from vhostpci_guest.errors import Refused, Unusable
from vhostpci_guest.held import Held
from vhostpci_guest.status_socket import (
    ANSWER_TIME,
    ASKS,
    MAX_ANSWERS,
    Control,
    Json,
    Status,
)
from vhostpci_shared.errors import told

LONG: Status = [
    {"device": f"0000:00:05.{n % 8}", "text": "x" * 1000} for n in range(4000)
]
"""A status of 4 MiB: no socket's buffer is as long."""


class StatusAgent(Agent):
    """An agent without devices that reports a given status."""

    answer: Status

    def status(self) -> Status:
        return self.answer


@contextmanager
def agent_with(status: Status, directory: Path) -> Iterator[None]:
    """Run an agent's loop that answers with `status`."""
    control = Control(directory)
    agent = StatusAgent(FakeSource(), lambda _name: pytest.fail("no TAP"), control)
    agent.answer = status
    with closing(control), in_loop(agent):
        yield


@pytest.fixture
def control(tmp_path: Path, clock: Clock) -> Iterator[Control]:
    control = Control(tmp_path, clock)
    yield control
    control.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    """Return a function that connects to the only agent; what it returns is closed."""
    with ExitStack() as undo:

        def connect(name: str = "") -> socket.socket:
            (path,) = tmp_path.glob("*.sock")
            client = undo.enter_context(socket.socket(socket.AF_UNIX))
            if name:
                client.bind(f"\0{name}")
            client.connect(str(path))
            client.settimeout(TIMEOUT)
            return client

        yield connect


def test_short_status_is_sent_to_a_client(tmp_path: Path) -> None:
    with agent_with([{"device": "0000:00:05.0"}], tmp_path):
        found = status_socket.ask(tmp_path).links
    assert found == [{"pid": os.getpid(), "device": "0000:00:05.0"}]


def test_status_of_some_mib_is_sent_whole(tmp_path: Path) -> None:
    with agent_with(LONG, tmp_path):
        found = status_socket.ask(tmp_path).links
    assert found == [{"pid": os.getpid(), **link} for link in LONG]


def test_client_that_never_reads_does_not_hold_the_agent_up(
    control: Control, connect: Callable[[], socket.socket]
) -> None:
    connect()
    # A blocking send would never end.
    for _ in range(2):
        assert returns(lambda: control.look(lambda: LONG))
    quick = connect()
    control.look(list)
    assert quick.recv(100) == b"[]"


def test_client_that_never_reads_is_dropped_when_its_time_is_over(
    control: Control,
    clock: Clock,
    connect: Callable[[], socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = connect()
    control.look(lambda: LONG)
    clock.seconds += ANSWER_TIME - 0.1
    control.look(lambda: LONG)
    assert len(list(control.events())) == 2
    clock.seconds += 0.2
    control.look(lambda: LONG)
    assert len(list(control.events())) == 1
    assert "did not read its answer within 5 s" in caplog.text
    text = b"".join(iter(lambda: client.recv(65536), b""))
    assert 0 < len(text) < len(json.dumps(LONG))


def test_client_that_goes_while_it_is_answered_is_dropped_at_once(
    control: Control, connect: Callable[[], socket.socket]
) -> None:
    client = connect()
    control.look(lambda: LONG)
    client.close()
    control.look(lambda: LONG)
    assert len(list(control.events())) == 1


def test_loop_sleeps_while_a_client_does_not_read(
    control: Control, connect: Callable[[], socket.socket]
) -> None:
    connect()
    control.look(lambda: LONG)
    poll = select.poll()
    for fd, events in control.events():
        poll.register(fd, events)
    assert poll.poll(0) == []


def test_clients_above_the_limit_wait_until_an_answer_is_over(
    control: Control, connect: Callable[[], socket.socket]
) -> None:
    clients = [connect() for _ in range(MAX_ANSWERS + 1)]
    control.look(lambda: LONG)
    assert len(list(control.events())) == MAX_ANSWERS  # none of them for new clients
    clients[0].close()
    control.look(lambda: LONG)
    control.look(list)
    assert clients[-1].recv(100) == b"[]"


@pytest.fixture
def cut_off(tmp_path: Path) -> Iterator[Path]:
    """Answer one client with half a status, as an agent that is killed does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "77.sock"))
        server.listen()

        def answer() -> None:
            connection, _address = server.accept()
            with connection:
                connection.sendall(b'[{"device": "0000:00')

        thread = threading.Thread(target=answer)
        thread.start()
        yield tmp_path
        thread.join()


def test_answer_that_is_cut_off_is_an_error_that_names_the_agent(cut_off: Path) -> None:
    (problem,) = status_socket.ask(cut_off).problems
    assert problem.startswith("agent 77: its answer is cut off after 20 bytes")


def test_agent_that_does_not_answer_is_named_beside_the_status_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = status_socket.ask
    # The time also of the agent that does answer.
    monkeypatch.setattr(status_socket, "_TIMEOUT", 2.0)
    monkeypatch.setattr(status_socket, "ask", lambda: ask(tmp_path))
    with socket.socket(socket.AF_UNIX) as silent, agent_with([], tmp_path):
        silent.bind(str(tmp_path / "1.sock"))
        silent.listen()
        assert ask(tmp_path).problems == [
            "agent 1: it does not answer within 2 s: it hangs, or is stopped"
        ]
        assert main(["status", "--json"]) == 1
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.parametrize(("command", "status"), [("status", 1), ("devices", 0)])
def test_directory_that_may_not_be_read_is_named(
    command: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_directory: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    # Root, who may run the unit tests, is refused no directory.
    monkeypatch.setattr("os.listdir", refuse)
    monkeypatch.setattr("vhostpci_guest.pci.search.find", list)
    assert main([command]) == status
    assert "cannot look into /run/vhostpci-guest: Permission denied" in caplog.text


@pytest.mark.parametrize("command", ["status", "devices"])
def test_answer_that_is_cut_off_ends_status_and_only_warns_devices(
    command: str,
    cut_off: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ask = status_socket.ask
    monkeypatch.setattr(status_socket, "ask", lambda: ask(cut_off))
    monkeypatch.setattr("vhostpci_guest.pci.search.find", list)
    assert main([command]) == (1 if command == "status" else 0)
    assert "cut off after 20 bytes" in caplog.text


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return the status socket that a killed agent left."""
    path = tmp_path / "1.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
    return path


def test_socket_of_a_killed_agent_is_removed_by_a_status_client(killed: Path) -> None:
    assert status_socket.ask(killed.parent) == ([], [])
    assert not killed.exists()


def test_socket_of_a_killed_agent_is_removed_by_the_next_agent(killed: Path) -> None:
    Control(killed.parent).close()
    assert not killed.exists()


def test_socket_of_a_living_agent_stays(control: Control, tmp_path: Path) -> None:
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / "1.sock")
    Control(tmp_path).close()
    assert (tmp_path / "1.sock").exists()


def test_socket_of_an_agent_that_is_busy_stays(tmp_path: Path) -> None:
    """So many clients wait that no further one can connect."""
    path = tmp_path / "1.sock"
    with ExitStack() as undo:
        busy = undo.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = undo.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        Control(tmp_path).close()
    assert path.exists()


@pytest.mark.parametrize("look", [status_socket.ask, lambda path: Control(path)])
def test_agent_that_is_starting_is_not_taken_for_a_killed_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[Path], object],
) -> None:
    """A client, or another agent, looks while the socket does not listen yet."""
    with monkeypatch.context() as patch, ExitStack() as undo:

        def look_once() -> None:
            patch.undo()
            # An agent with another number.
            patch.setattr(os, "getpid", lambda: 1)
            found = look(tmp_path)
            patch.undo()
            if isinstance(found, Control):
                undo.callback(found.close)

        before_listen(patch, look_once)
        undo.callback(Control(tmp_path).close)
        assert status_socket.path_of(os.getpid(), tmp_path).exists()


def test_socket_is_for_no_other_user(control: Control, tmp_path: Path) -> None:
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_socket_goes_with_the_agent(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    ours = Control(directory)
    assert len(list(directory.iterdir())) == 1
    assert directory.stat().st_mode & 0o777 == 0o700
    ours.close()
    assert list(directory.iterdir()) == []


def test_missing_socket_directory_means_that_no_agent_runs(tmp_path: Path) -> None:
    assert status_socket.ask(tmp_path / "none") == ([], [])


def ask_control(
    control: Control, directory: Path, ask: status_socket.Ask, question: Json
) -> object:
    """Ask a control that `ask` answers for; return the result, or the error."""
    found: list[object] = []

    def client() -> None:
        try:
            found.append(status_socket.request(os.getpid(), question, directory))
        except Unusable as why:
            found.append(told(why))

    thread = threading.Thread(target=client)
    thread.start()
    while thread.is_alive():
        control.look(list, ask)
        thread.join(0.01)
    return found[0]


def test_client_with_a_name_is_answered_what_it_asks(
    control: Control, tmp_path: Path
) -> None:
    found = ask_control(
        control, tmp_path, lambda request: {"got": request["a"]}, {"a": 1}
    )
    assert found == {"got": 1}


def test_refusal_is_the_clients_error(control: Control, tmp_path: Path) -> None:
    def refuse(_request: Json) -> Json:
        raise Refused("no device 'x'", code="G999")

    assert ask_control(control, tmp_path, refuse, {}) == "no device 'x' [G999]"


def test_agent_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    # It knows no names of clients, and answers with its status.
    with ExitStack() as undo:
        old = undo.enter_context(socket.socket(socket.AF_UNIX))
        old.bind(str(tmp_path / "77.sock"))
        old.listen()

        def answer() -> None:
            connection, _address = old.accept()
            with connection:
                connection.sendall(b"[]")

        thread = threading.Thread(target=answer)
        thread.start()
        undo.callback(thread.join)
        with pytest.raises(Unusable, match="earlier version"):
            status_socket.request(77, {}, tmp_path)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"7\n", b"{" * 2000 + b"\n", b"\xff\n"],
    ids=["empty", "7", "deep", "bytes"],
)
def test_line_that_is_no_request_is_refused(
    control: Control, connect: Callable[[str], socket.socket], line: bytes
) -> None:
    client = connect(f"{ASKS}{os.getpid()}.test")
    client.sendall(line)
    control.look(list, status_socket.refuse_all)
    control.look(list, status_socket.refuse_all)
    assert "a line with one JSON object" in json.loads(client.recv(1000))["error"]


@pytest.mark.parametrize("line", [b"x" * (status_socket.LONGEST + 1), b""])
def test_client_without_a_line_is_dropped(
    control: Control, clock: Clock, connect: Callable[[str], socket.socket], line: bytes
) -> None:
    client = connect(f"{ASKS}{os.getpid()}.test")
    client.sendall(line)
    control.look(list)
    clock.seconds += ANSWER_TIME + 0.1
    control.look(list)
    control.look(list)
    assert len(list(control.events())) == 1


class Lasting:
    """An answer with a descriptor that lasts while its client is there."""

    def __init__(self, fd: int) -> None:
        self.over = self.ended = False
        self.held = Held({"a": 1}, (fd,), lambda: self.over, self.end)

    def end(self) -> None:
        assert not self.ended, "it ends once"
        self.ended = True


def hold(control: Control, directory: Path, lasting: Lasting) -> socket.socket:
    """Ask for it; return the client's connection."""
    found: list[socket.socket] = []

    def client() -> None:
        result, fds, sock = status_socket.hold(os.getpid(), {}, directory)
        assert result == {"a": 1}
        assert os.pread(fds[0], 10, 0) == b"memory"
        os.close(fds[0])
        found.append(sock)

    thread = threading.Thread(target=client)
    thread.start()
    while thread.is_alive():
        control.look(list, lambda _request: lasting.held)
        thread.join(0.01)
    return found[0]


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Lasting]:
    path = tmp_path / "memory"
    path.write_bytes(b"memory")
    with path.open() as file:
        yield Lasting(file.fileno())


def test_answer_with_a_descriptor_ends_with_its_client(
    control: Control, tmp_path: Path, lasting: Lasting
) -> None:
    client = hold(control, tmp_path, lasting)
    control.look(list)
    assert not lasting.ended
    client.close()
    control.look(list)
    assert lasting.ended
    assert len(list(control.events())) == 1


def test_client_of_an_answer_that_is_over_is_disconnected(
    control: Control, tmp_path: Path, lasting: Lasting
) -> None:
    with hold(control, tmp_path, lasting) as client:
        lasting.over = True
        control.look(list)
        assert lasting.ended
        assert client.recv(1) == b""


def test_answer_ends_with_the_agent(
    control: Control, tmp_path: Path, lasting: Lasting
) -> None:
    with hold(control, tmp_path, lasting) as client:
        control.close()
        assert lasting.ended
        assert client.recv(1) == b""
