# SPDX-License-Identifier: Apache-2.0
"""One daemon with many devices: each is added, removed, and fails independently."""

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.bench import devices
from tests.fakes.frontend import Dropped, RingAt
from tests.fakes.slave_client import SlaveClient
from tests.process.fleet import Fleet, kicks_arrive
from tests.process.shared import Shared
from tests.waiting import TIMEOUT, wait_for
from vhostpci_host.daemon.control import MAX_CONNECTIONS
from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place on tmpfs, with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def fleet(directory: Path) -> Iterator[Fleet]:
    """A daemon of the test's own, with the devices a and b.

    For tests that remove a device that others use, cut an arena, or end the daemon.
    """
    with Fleet(directory, ["a", "b"]) as fleet:
        yield fleet


@contextlib.contextmanager
def a_and_b() -> Iterator[Fleet]:
    """Start a daemon with two devices."""
    with (
        tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name,
        Fleet(Path(name), ["a", "b"]) as fleet,
    ):
        yield fleet


@pytest.fixture(scope="module")
def fleets() -> Iterator[Shared[Fleet]]:
    """One daemon with the devices a and b, for the tests that need no other."""
    with Shared(a_and_b, Fleet.unchanged) as fleets:
        yield fleets


@pytest.fixture
def shared(fleets: Shared[Fleet]) -> Iterator[Fleet]:
    """That daemon; a test that leaves other devices or files fails."""
    with fleets.lent() as fleet:
        yield fleet


def test_each_device_of_the_file_has_sockets_that_work(shared: Fleet) -> None:
    a, b = shared.pair("a"), shared.pair("b")
    assert kicks_arrive(*a)
    assert kicks_arrive(*b)
    rows = {row["name"]: row for row in json.loads(shared.command("list", "-j").stdout)}
    for name, device in shared.devices().items():
        # The command line adds the names of the VMs.
        assert rows[name].items() >= device.items()
    assert [rows[name]["state"] for name in ("a", "b")] == ["no agent"] * 2
    assert rows["a"]["master_pid"] == rows["a"]["slave_pid"] == os.getpid()
    assert json.loads(shared.command("status", "b", "-j").stdout)["name"] == "b"


def test_daemon_that_ends_leaves_only_the_memory_of_masters(fleet: Fleet) -> None:
    fleet.pair("a")
    assert fleet.command("add", "c", "--memory", "16M").returncode == 0
    fleet.pair("c")
    assert fleet.command("remove", "c").returncode == 0
    assert fleet.end() == 0
    assert fleet.files() == ["a"]


def test_daemon_may_start_without_devices(directory: Path) -> None:
    with Fleet(directory) as fleet:
        assert fleet.command("list").stdout == "no devices\n"
        assert fleet.command("add", "a", "--memory", "16M").returncode == 0
        assert kicks_arrive(*fleet.pair("a"))


def test_added_device_has_the_files_defaults_and_its_own_options(
    shared: Fleet,
) -> None:
    options = ("--mode", "attach", "--queue-pairs", "8", "--socket-mode", "0666")
    assert shared.command("add", "c", *options).returncode == 0
    status = json.loads(shared.command("status", "c", "-j").stdout)
    assert (status["mode"], status["queue_pairs"], status["vectors"]) == (
        *("attach", 8, 17),
    )
    assert (shared.run_dir / "c.vhost-user").stat().st_mode & 0o777 == 0o666
    assert "attach" in shared.command("list").stdout
    assert shared.command("remove", "c").returncode == 0


def test_removed_device_loses_its_files_and_the_other_still_works(fleet: Fleet) -> None:
    a, (b_master, _) = fleet.pair("a"), fleet.pair("b")
    before = [name for name in fleet.files() if name.startswith("b")]
    assert len(before) == 4
    assert fleet.command("remove", "b").returncode == 0
    with pytest.raises(Dropped):
        b_master.ask(Request.GET_FEATURES)
    assert not [name for name in fleet.files() if name.startswith("b")]
    assert fleet.devices().keys() == {"a"}
    assert kicks_arrive(*a)


@pytest.mark.parametrize("by", ["command", "SIGHUP"])
def test_file_that_is_read_again_changes_only_what_differs(
    fleet: Fleet, by: str
) -> None:
    a, (b_master, _) = fleet.pair("a"), fleet.pair("b")
    memory = os.stat(fleet.memory_dir / "b").st_ino
    text = fleet.file.read_text()
    changed = text.replace("[device.b]", "[device.b]\nqueue-pairs = 2")
    fleet.file.write_text(f'{changed}[device.c]\nmemory = "16M"\n')
    if by == "command":
        done = fleet.command("reload")
        assert (done.returncode, done.stdout) == (0, "added: c\nchanged: b\n")
    else:
        fleet.send(signal.SIGHUP)
    fleet.wait_log("vms.toml: 1 added, 1 changed, 0 removed")
    assert kicks_arrive(*a)
    assert kicks_arrive(*fleet.pair("c"))
    with pytest.raises(Dropped):
        b_master.ask(Request.GET_FEATURES)
    # Its master, which still runs, has this memory.
    assert os.stat(fleet.memory_dir / "b").st_ino == memory
    fleet.file.write_text(text.replace("16M", "sixteen"))
    if by == "command":
        done = fleet.command("reload")
        assert done.returncode == 1
        assert "memory 'sixteen'" in done.stderr
    else:
        fleet.send(signal.SIGHUP)
        fleet.wait_log("not reloaded, and nothing has changed")
    assert fleet.devices().keys() == {"a", "b", "c"}
    assert kicks_arrive(*a)


def test_removed_device_can_be_added_again(fleet: Fleet) -> None:
    counts = []
    for _ in range(4):
        assert fleet.command("remove", "b").returncode == 0
        assert fleet.command("add", "b", "--memory", "16M").returncode == 0
        counts.append(fleet.descriptors())
    assert max(counts) <= min(counts) + 1


@pytest.mark.parametrize(
    ("options", "windows"),
    [(("--memory", "16M"), 0), (("--mode", "attach"), 1)],
    ids=["arena", "attach"],
)
def test_removed_device_costs_no_descriptor_once_its_slave_has_closed(
    shared: Fleet, options: tuple[str, ...], windows: int
) -> None:
    """Each connection of the slave's QEMU stays open until QEMU closes it.

    If the daemon closed it first, a QEMU that has not read the handshake yet would
    stand still; see `vhostpci_host.ivshmem.linger`.
    """
    shared.pair("a")  # one slave stays connected to a device that stays
    before = shared.open_files()
    with contextlib.ExitStack() as connections:
        for _ in range(3):
            assert shared.command("add", "c", *options).returncode == 0
            connect_all(shared, "c", windows, connections)
            assert shared.command("remove", "c").returncode == 0
        left = len(before) + 3 * (1 + windows)
        # The last command's connection may take a moment to go.
        wait_for(lambda: len(shared.open_files()) == left, shared.open_files)
    wait_for(lambda: shared.open_files() == before, shared.open_files)


def connect_all(
    fleet: Fleet, name: str, windows: int, stack: contextlib.ExitStack
) -> None:
    """Connect a master, and a slave's QEMU to the device and to each of its windows."""
    slave = SlaveClient(fleet.run_dir / f"{name}.ivshmem")
    stack.callback(slave.close)
    slave.handshake()
    fleet.master(name).driver_ok([RingAt.nth(0), RingAt.nth(1)])
    sockets = partial(fleet.run_dir.glob, f"{name}.ivshmem.*")
    wait_for(lambda: len(list(sockets())) == windows, f"sockets of {windows} windows")
    for path in sockets():
        window = SlaveClient(path)
        stack.callback(window.close)
        window.handshake(vectors=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "a", "--memory", "1M"], "device 'a' is there already"),
        (["add", "c"], "c: memory is missing"),
        (["add", "c", "--mode", "attach", "--memory", "1M"], "leave it out"),
        (["add", "c", "--memory", "1M", "--socket-group", "nix"], "groupadd nix"),
        (["add", "c", "--memory", "1M", "--memory-dir", "/proc"], "/proc"),
        (["remove", "c"], "no device 'c'; there are: a, b"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_command_that_fails_prints_the_reason(
    shared: Fleet, words: list[str], said: str
) -> None:
    done = shared.command(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("vhostpci-host: ")
    assert said in done.stderr
    assert shared.devices().keys() == {"a", "b"}


def test_second_daemon_in_the_directory_is_refused(shared: Fleet) -> None:
    second = Fleet(shared.file.parent)
    assert second.wait() == 1
    second.__exit__(None, None, None)
    assert f"another daemon serves {shared.run_dir}" in second.log
    assert shared.devices().keys() == {"a", "b"}


def test_device_that_cannot_be_served_is_listed_as_failed(directory: Path) -> None:
    (directory / "memory" / "a").mkdir(parents=True)
    with Fleet(directory, ["a", "b"]) as fleet:
        row = fleet.devices()["a"]
        assert row["state"] == "failed"
        assert "is no regular file" in row["reason"]
        assert "a: failed: arena " in fleet.command("status").stdout
        done = fleet.command("qemu-args", "a", "--role", "master")
        assert (done.returncode, "a: failed: " in done.stderr) == (1, True)
        assert kicks_arrive(*fleet.pair("b"))
        (directory / "memory" / "a").rmdir()
        assert fleet.command("remove", "a").returncode == 0
        assert fleet.command("add", "a", "--memory", "16M").returncode == 0


BREAKABLE = """
import os, sys
from vhostpci_host.cli.main import main
from vhostpci_host.device.device import Device
def may_break(method):
    def breaks(self, *args):
        if os.path.exists(self.config.run_dir / f"{self.config.name}.break"):
            raise RuntimeError("it broke")
        method(self, *args)
    return breaks
for name in sys.argv.pop(1).split(","):
    setattr(Device, name, may_break(getattr(Device, name)))
sys.exit(main())
"""


@pytest.mark.parametrize(
    "what", ["tick", "tick,_publish", "receive", "tick,master_gone"]
)
def test_other_device_works_when_one_fails(directory: Path, what: str) -> None:
    """Also if the device fails again while it is closed."""
    program = ("-W", "error", "-c", BREAKABLE, what)
    with Fleet(directory, ["a", "b"], program=program) as fleet:
        a, (b_master, _) = fleet.pair("a"), fleet.pair("b")
        (fleet.run_dir / "b.break").touch()
        with contextlib.suppress(Dropped):
            b_master.stop_ring(0)
        fleet.wait_state("b", "failed")
        with pytest.raises((Dropped, OSError)):
            b_master.ask(Request.GET_FEATURES)
        assert fleet.devices()["b"]["reason"] == "RuntimeError: it broke"
        assert "RuntimeError: it broke" in fleet.command("status", "b").stdout
        assert kicks_arrive(*a)
        assert fleet.said("b: failed, and is closed") == 1
        (fleet.run_dir / "b.break").unlink()
        # A master may run on with the memory of a device that failed.
        assert [name for name in fleet.files() if name.startswith("b")] == ["b"]
        assert fleet.command("remove", "b").returncode == 0
        assert [name for name in fleet.files() if name.startswith("b")] == []
        assert fleet.command("add", "b", "--memory", "16M").returncode == 0
        fleet.master("b").ask(Request.GET_FEATURES)


def test_only_device_that_fails_ends_its_daemon(directory: Path) -> None:
    """`run NAME` serves that device only."""
    options = [
        *("--run-dir", str(directory), "--memory-dir", str(directory)),
        *("--keeper", "none"),
    ]
    (directory / "b.break").touch()
    done = subprocess.run(
        [
            *(sys.executable, "-c", BREAKABLE, "tick", "run", "b", "--memory", "1M"),
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert done.returncode == 1
    said = "vhostpci-host: b: failed: RuntimeError: it broke [H070]\n"
    assert done.stderr.endswith(said)
    assert done.stderr.count("Traceback") == 1


GONE = (OSError, EOFError, Dropped, ProtocolError, AssertionError)
"""The errors of a front-end or a slave whose connection ends."""


def test_device_without_free_descriptors_drops_its_connections_only(
    directory: Path,
) -> None:
    """Each number of free descriptors stops another step of a device's set-up."""
    with Fleet(directory, ["a", "b"]) as fleet:
        a = fleet.pair("a")
        for count in (1, 2, 4, 7, 8, 11, 12, 13):
            with free_descriptors(fleet, count):
                with contextlib.suppress(*GONE):
                    fleet.pair("b")
                assert kicks_arrive(*a)
                fleet.disconnect()
            a = fleet.pair("a")
            assert kicks_arrive(*a)
            fleet.wait_state("b", "no master")
        assert fleet.said("(LimitNOFILE= of its unit, or ulimit -n")
        assert not fleet.said("Traceback")
        assert not fleet.said("unclosed")
        assert kicks_arrive(*fleet.pair("b"))


def test_device_is_not_added_without_free_descriptors(directory: Path) -> None:
    with Fleet(directory, ["a"]) as fleet:
        before = fleet.files()
        for count in range(2, 8):
            with free_descriptors(fleet, count):
                done = fleet.command("add", "b", "--memory", "16M")
                assert done.returncode == 1
                assert "no descriptors are left" in done.stderr
        assert fleet.files() == before
        assert not fleet.said("Traceback")
        assert not fleet.said("unclosed")


@contextlib.contextmanager
def free_descriptors(fleet: Fleet, count: int) -> Iterator[None]:
    """Leave the daemon so many free descriptors.

    By its limit: connections that take descriptors would be closed when their line
    does not come in time, while a command of the test starts on a loaded machine.
    """
    pid, before = fleet.serving, fleet.open_files()
    _, hard = limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if number not in before)
    forbidden = next(itertools.islice(free, count, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (forbidden, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    wait_for(lambda: fleet.descriptors() <= len(before), fleet.open_files)


LINES = [
    b"",
    b"nonsense",
    b"[]",
    b"[" * 60000,
    b'{"command": "add"}',
    b'{"command": "add", "name": "../x"}',
    b'{"command": "add", "name": ["a"]}',
    b'{"command": "add", "name": "c", "options": []}',
    b'{"command": "add", "name": "c", "options": {"memory": 1}}',
    b'{"command": "add", "name": "c", "options": {"dance": "1"}}',
    b'{"command": "add", "name": "c", "options": {"run-dir": "/tmp"}}',
    b'{"command": "add", "name": "c", "options": {"memory-dir": "x"}}',
    b'{"command": "add", "name": "c", "options": {"memory": "1\\u0000M"}}',
    b'{"command": "add", "name": "c", "options": {"memory-dir": "/\\u0000"}}',
    b'{"command": "add", "name": "c", "options": {"socket-group": "\\u0000"}}',
    b'{"command": "add", "name": "c", "options": {"socket-group": "\\ud800"}}',
    b'{"command": "add", "name": "c", "options": {"memory-dir": "/\\ud800"}}',
    b'{"command": "remove"}',
    b'{"command": "remove", "name": {}}',
    b'{"command": "status", "name": 1}',
]


def test_control_socket_answers_any_line(shared: Fleet) -> None:
    with (
        control(shared.run_dir / "control") as connection,
        connection.makefile("rb") as answers,
    ):
        for line in LINES:
            connection.sendall(line + b"\n")
            answer = json.loads(answers.readline())
            assert not answer["ok"], line
            assert "an error in the daemon" not in answer["error"], line
    assert shared.devices().keys() == {"a", "b"}


def test_control_line_without_end_is_dropped(shared: Fleet) -> None:
    with (
        control(shared.run_dir / "control") as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(b"x" * 1_000_000)
        assert not connection.recv(100)
    assert shared.devices().keys() == {"a", "b"}


def test_oldest_control_connection_is_closed_beyond_a_number(shared: Fleet) -> None:
    with contextlib.ExitStack() as stack:
        oldest, *others = [
            stack.enter_context(control(shared.run_dir / "control"))
            for _ in range(MAX_CONNECTIONS + 1)
        ]
        assert oldest.recv(1) == b""
        # Not because it said nothing for too long: then the next would be closed too.
        for connection in (others[0], others[-1]):
            connection.sendall(b"\n")
            assert connection.recv(1000)
        a = shared.pair("a")
        assert kicks_arrive(*a)
    assert shared.devices().keys() == {"a", "b"}


@contextlib.contextmanager
def control(path: Path) -> Iterator[socket.socket]:
    """Connect to a control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(os.fspath(path))
        yield connection


def test_daemon_and_its_devices_survive_an_arena_that_is_cut_repeatedly(
    fleet: Fleet,
) -> None:
    """Each process that has the arena can cut it: here, the slave."""
    (qemu, slave), b = fleet.pair("a"), fleet.pair("b")
    arena = fleet.memory_dir / "a"
    size = arena.stat().st_size
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        for left in (0, size // 2, size - 4096):
            os.truncate(arena, left)
            os.eventfd_write(slave.peers[md.DAEMON_PEER][0], 1)
    fleet.wait_log("a: another process cut")
    assert fleet.said("another process cut") == 1
    wait_for(lambda: arena.stat().st_size == size, "the arena is whole")
    assert kicks_arrive(qemu, slave)
    assert kicks_arrive(*b)
    slave.catch_up()
    with slave.metadata() as metadata:
        wait_for(lambda: all(ring.runs for ring in rings(metadata)), "rings run")
    assert fleet.devices().keys() == {"a", "b"}
    assert fleet.end() == 0


def test_arena_that_is_cut_without_a_master_is_made_whole(fleet: Fleet) -> None:
    for name in ("a", "b"):
        os.truncate(fleet.memory_dir / name, 0)
    fleet.wait_log("a: another process cut")
    fleet.wait_log("b: another process cut")
    a = fleet.pair("a")
    assert kicks_arrive(*a)
    with a[1].metadata() as metadata:
        assert all(ring.runs for ring in rings(metadata))


def rings(metadata: access.Metadata) -> tuple[md.Ring, ...]:
    snapshot = metadata.snapshot()
    return () if snapshot is None else snapshot.rings


@pytest.fixture
def silent_qmp(directory: Path) -> Iterator[Path]:
    """A QMP socket that accepts connections and never sends a greeting."""
    path = directory / "silent.qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        yield path


def test_slave_vm_that_never_answers_delays_remove_and_end_only_briefly(
    fleet: Fleet, silent_qmp: Path
) -> None:
    options = ("--mode", "attach", "--slave-qmp", str(silent_qmp))
    for name in ("c", "d", "e"):
        assert fleet.command("add", name, *options).returncode == 0
        fleet.master(name).driver_ok([RingAt.nth(0), RingAt.nth(1)])
    a = fleet.pair("a")
    assert fleet.command("remove", "c").returncode == 0
    assert kicks_arrive(*a)
    # Each of the two that are left may wait for an answer; not one after the other.
    assert fleet.end_within(9.0) == 0
    assert fleet.files() == ["a"]


@pytest.mark.parametrize("mode", ["arena", "attach"])
def test_many_devices_cost_little_each(mode: str) -> None:
    """Generous bounds; `python -m tests.bench.devices` gives the figures."""
    with limits_kept():
        result = devices.measure(50, mode, idle=2.0, end_within=5.0)
    assert result.per_device("rss", result.connected) < 256 * 1024
    assert result.per_device("descriptors", result.connected) < 40
    assert result.connect_work < 10.0
    assert result.idle < 0.5


@contextlib.contextmanager
def limits_kept() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
