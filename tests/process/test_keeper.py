# SPDX-License-Identifier: Apache-2.0
"""A daemon that is killed has a successor, and neither master nor slave notices it."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.frontend import Dropped, Socket
from tests.fakes.netns import private_network
from tests.pings import ping, unbroken, wait_late_replies
from tests.process.attach import AttachLab
from tests.process.kept import replace, serving
from tests.process.lab import ATTACH, SLAVE_ADDRESS, Lab
from tests.process.program import DaemonProgram
from tests.processes import children, stop
from tests.waiting import PROCESS_TIMEOUT, TIMEOUT, wait_for
from vhostpci_host.daemon.control_client import ask
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.process

NOTICED = (
    "front-end connected",
    "front-end disconnected",
    "slave connected",
    "slave disconnected",
    "started rings",
    "stopped rings",
    "cannot be used",
    "Traceback",
)
"""What the log would say if a master or a slave had noticed."""


@pytest.fixture
def kept(lab: Lab) -> Iterator[Lab]:
    """A lab whose daemon ends with its keeper."""
    yield lab
    assert lab.daemon.end() == 0
    assert "Traceback" not in lab.daemon.log


def start(lab: Lab, keeper: str = "auto") -> None:
    lab.start_daemon("--keeper", keeper)
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    lab.wait_state("running")
    assert lab.ping_from_master() == 5


def sessions(lab: Lab) -> list[int]:
    return [ring["session"] for ring in lab.status()["rings"]]


def unnoticed(lab: Lab) -> bool:
    """Whether the log says nothing of a front-end, a slave or a ring."""
    return not any(lab.daemon.said(text) for text in NOTICED)


@pytest.mark.parametrize("keeper", ["auto", "standby"])
def test_packets_go_on_when_the_daemon_is_killed(kept: Lab, keeper: str) -> None:
    start(kept, keeper)
    before = sessions(kept)
    kept.daemon.start_log_here()
    pings = kept.start_server([*ping(100, "-i", "0.05"), SLAVE_ADDRESS])
    for _ in range(3):
        replace(kept)
    assert kept.status()["state"] == "running"
    assert sessions(kept) == before
    assert pings.wait() == 0
    assert unbroken(pings.log) == 100
    assert unnoticed(kept), kept.daemon.log
    assert kept.master.unload()
    kept.master.load()
    kept.wait_carrier("UP")
    wait_for(lambda: kept.ping_from_slave(1) == 1, "a first ping comes back")
    assert kept.ping_from_slave() == 5


def test_upgrade_costs_no_packet(kept: Lab) -> None:
    """The successor is there before the daemon makes room."""
    start(kept)
    before = sessions(kept)
    kept.daemon.start_log_here()
    pings = kept.start_server(["ping", "-n", "-i", "0.02", SLAVE_ADDRESS])
    for _ in range(3):
        done = kept.run_host("restart", "net0")
        assert not done.returncode, done.stderr
        assert "made room for pid" in done.stdout
    wait_late_replies(pings)
    assert pings.end(signal.SIGINT) == 0
    assert unbroken(pings.log) > 10
    assert sessions(kept) == before
    assert unnoticed(kept), kept.daemon.log


def write_file(lab: Lab, path: Path, more: str = "") -> None:
    """Write a configuration with the devices a and b, and `more` for b."""
    device = '[device.{name}]\nmemory = "32M"\n'
    path.write_text(
        f'run-dir = "{lab.run_dir}"\nmemory-dir = "{lab.memory_dir}"\n'
        + device.format(name="a")
        + device.format(name="b")
        + more
    )


def start_many(lab: Lab, path: Path) -> DaemonProgram:
    """Start a daemon with the devices a and b of a file, and with c, which is added."""
    write_file(lab, path)
    command = [sys.executable, "-m", "vhostpci_host", "run", "--config", str(path)]
    daemon = lab.start_run(command)
    daemon.wait_log("serving ")
    assert not lab.run_host("add", "c", "--memory", "32M").returncode
    return daemon


def answers(master: Socket) -> bool:
    """Whether the daemon answers a master; it may have hung up."""
    try:
        master.send(vu.message(Request.GET_FEATURES), ())
        return bool(master.receive())
    except Dropped:
        return False


def test_upgrade_of_many_devices_keeps_those_that_are_configured_as_before(
    lab: Lab, tmp_path: Path
) -> None:
    """Also one that was added, and that no file has."""
    file = tmp_path / "vms.toml"
    daemon = start_many(lab, file)
    with ExitStack() as undo:

        def connect(name: str) -> Socket:
            found = Socket(lab.run_dir / f"{name}.vhost-user")
            undo.callback(found.close)
            assert answers(found)
            return found

        masters = {name: connect(name) for name in "abc"}
        write_file(lab, file, "queue-pairs = 2\n")
        done = lab.run_host("restart")
        assert not done.returncode, done.stderr
        served = {name: answers(master) for name, master in masters.items()}
        assert served == {"a": True, "b": False, "c": True}
        daemon.wait_log("goes on where an earlier daemon has ended", 2)
        daemon.wait_log("b: what an earlier daemon has left cannot be used")
        assert daemon.said("goes on where an earlier daemon has ended") == 2
        assert daemon.said("b: what an earlier daemon has left cannot be used") == 1
        # It begins without that, also in the place of its sockets and its arena.
        connect("b")
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_all_devices_go_on_although_most_descriptors_are_in_use(
    lab: Lab, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "vms.toml"
    write_file(lab, file)
    with file.open("a") as more:
        for count in range(20):
            more.write(f'[device.d{count}]\nmemory = "1M"\n')
    command = [sys.executable, "-m", "vhostpci_host", "run", "--config", str(file)]
    daemon = lab.start_run(command)
    daemon.wait_log("serving ")
    limit = daemon.descriptors() + 30  # a few for Python, and for one device
    for pid in (daemon.process.pid, daemon.serving):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    killed = number == signal.SIGKILL
    os.kill(daemon.serving if killed else daemon.process.pid, number)
    daemon.wait_log("serving ", 2)
    assert daemon.said("goes on where an earlier daemon has ended") == 22
    assert not daemon.said("Too many open files")


def test_command_is_answered_although_the_daemon_was_just_killed(
    lab: Lab, tmp_path: Path
) -> None:
    start_many(lab, tmp_path / "vms.toml")
    control = lab.run_dir / "control"
    for _ in range(2):
        os.kill(ask(control, {"command": "pid"}, TIMEOUT), signal.SIGKILL)
        rows = ask(control, {"command": "list"}, TIMEOUT)
        assert [row["name"] for row in rows] == ["a", "b", "c"]


def test_heir_serves_what_the_file_says_when_it_takes_over(
    lab: Lab, tmp_path: Path
) -> None:
    """It was started, and had read the file, before a device came into it."""
    file = tmp_path / "vms.toml"
    write_file(lab, file)
    command = [sys.executable, "-m", "vhostpci_host", "run", "--config", str(file)]
    daemon = lab.start_run([*command, "--keeper", "standby"])
    wait_for(lambda: len(children(daemon.process.pid)) == 2, "there is an heir")
    (heir,) = set(children(daemon.process.pid)) - {daemon.serving}
    # In recvmsg(), which waits for a word of the keeper's.
    wait_for(lambda: system_call(heir) == RECVMSG, "the heir has read the file")
    write_file(lab, file, '[device.c]\nmemory = "32M"\n')
    assert not lab.run_host("reload").returncode
    with ExitStack() as undo:
        master = Socket(lab.run_dir / "c.vhost-user")
        undo.callback(master.close)
        assert answers(master)
        os.kill(daemon.serving, signal.SIGKILL)
        assert answers(master)
    daemon.wait_log("c: goes on where an earlier daemon has ended")
    assert daemon.end() == 0


def test_successor_goes_on_although_mistakes_have_come_into_the_file(
    lab: Lab, tmp_path: Path
) -> None:
    """With what it said when it was read last, also by a reload."""
    file = tmp_path / "vms.toml"
    write_file(lab, file)
    command = [sys.executable, "-m", "vhostpci_host", "run", "--config", str(file)]
    daemon = lab.start_run(command)
    daemon.wait_log("serving ")
    write_file(lab, file, '[device.c]\nmemory = "32M"\n')
    assert not lab.run_host("reload").returncode
    write_file(lab, file, "nonsense\n")
    with ExitStack() as undo:
        masters = [Socket(lab.run_dir / f"{name}.vhost-user") for name in "abc"]
        for master in masters:
            undo.callback(master.close)
            assert answers(master)
        for count in (1, 2):
            os.kill(daemon.serving, signal.SIGKILL)
            assert all(map(answers, masters))
            daemon.wait_log("going on with what it said before", count)
            assert daemon.said("going on with what it said before") == count
    assert daemon.end() == 0


RECVMSG = {"x86_64": 47}.get(os.uname().machine, 212)


def system_call(pid: int) -> int | None:
    """Return the number of the system call in which a process sleeps, if it does."""
    first = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return int(first) if first.isdecimal() else None


def test_successor_that_does_not_start_is_reported(lab: Lab, tmp_path: Path) -> None:
    """The user who asked for the restart learns it, and the daemon goes on."""
    file = tmp_path / "vms.toml"
    daemon = start_many(lab, file)
    write_file(lab, file, "nonsense\n")
    done = lab.run_host("restart")
    assert done.returncode == 1
    assert "the successor does not start, and the log says why" in done.stderr
    assert daemon.said("(at line 7, column 9)") == 1
    assert not lab.run_host("remove", "c").returncode


def test_restart_needs_a_keeper(lab: Lab) -> None:
    lab.start_daemon("--keeper", "none")
    done = lab.run_host("restart", "net0")
    assert done.returncode == 1
    assert "there is no keeper to start a successor: none is used" in done.stderr


def test_master_with_its_own_memory_and_its_slave_go_on(tmp_path: Path) -> None:
    """The memory files, their windows and the windows' sockets are kept."""
    with private_network(), AttachLab(tmp_path) as lab:
        lab.start_daemon(*ATTACH, "--keeper", "auto")
        lab.start_agent()
        with lab.attached(7 << 20, 25 << 20):
            before = sessions(lab), lab.windows()
            lab.daemon.start_log_here()
            for _ in range(2):
                replace(lab)
                assert lab.ping_from_master(5, "-s", "60000") == 5
            assert (sessions(lab), lab.windows()) == before
            assert all(one["connected"] for one in lab.status()["windows"])
            assert unnoticed(lab), lab.daemon.log
        lab.wait_carrier("NO-CARRIER")
        wait_for(lambda: not lab.status()["windows"], "the windows are gone")
        assert lab.daemon.end() == 0


def test_daemon_that_hangs_is_replaced(kept: Lab) -> None:
    """A master whose driver is unloaded meanwhile waits no longer than that takes."""
    start(kept)
    before = serving(kept)
    stop(before)
    kept.master.unload()
    assert serving(kept) != before
    assert kept.daemon.said(f"the daemon (pid {before}) hangs") == 1
    kept.master.load()
    kept.wait_carrier("UP")
    wait_for(lambda: kept.ping_from_master(1) == 1, "a first ping comes back")
    assert "front-end disconnected" not in kept.daemon.log


def test_keeper_that_dies_is_reported_and_the_daemon_goes_on(lab: Lab) -> None:
    start(lab)
    os.kill(lab.daemon.process.pid, signal.SIGKILL)
    lab.daemon.wait()
    wait_for(lambda: lab.status()["keeper"]["problem"], lab.status)
    assert "the keeper is gone" in lab.run_host("status", "net0").stdout
    assert lab.ping_from_master() == 5
    pid = serving(lab)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the daemon has ended")


def test_reload_replaces_an_arena_when_a_slow_keeper_has_closed_it(
    lab: Lab, tmp_path: Path
) -> None:
    daemon = lab.start_fleet("net0")
    lab.start_master().close()  # which has the arena stay
    lab.wait_state("no master")
    size, file = lab.arena.stat().st_size, tmp_path / "vms.toml"
    file.write_text(file.read_text().replace('memory = "', 'memory = "64M" # '))
    keeper = daemon.process.pid
    stop(keeper)
    goes_on = threading.Timer(0.3, os.kill, (keeper, signal.SIGCONT))
    goes_on.start()
    done = ask(lab.run_dir / "control", {"command": "reload"}, PROCESS_TIMEOUT)
    goes_on.join()
    assert not done["failed"]
    assert lab.arena.stat().st_size != size
