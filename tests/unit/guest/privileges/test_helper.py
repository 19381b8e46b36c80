# SPDX-License-Identifier: Apache-2.0
"""A helper process lives as long as its agent, and an agent without rights has none."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for
from vhostpci_guest.privileges import process
from vhostpci_guest.privileges.helper import PATIENCE
from vhostpci_guest.privileges.user import User, default_user, owner, parse_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

AGENT = """
import json, os, sys
from vhostpci_guest.privileges import process
from vhostpci_guest.privileges.channel import Answer
from vhostpci_guest.privileges.helper import Helper

def status(_order):
    with open("/proc/self/status") as file:
        return Answer(str(file.read()))

keep = {process.NET_ADMIN}
helper = Helper("a-helper", "helps", keep, lambda pid: {"status": status})
print(helper.pid, flush=True)
"""
GIVE_UP = """
import os
from vhostpci_guest.cli import separation
from vhostpci_guest.privileges.user import User
separation.give_up(User("nobody", 65534, 65534), asked=False)

def refused(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "done"
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def agent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An agent that waits, and the PID of its helper."""
    agent = start(AGENT + "sys.stdin.readline()\nhelper.close()\nprint('closed')\n")
    assert agent.stdout is not None
    yield agent, int(agent.stdout.readline())
    agent.kill()
    agent.communicate()


SOON = 40.0
"""Seconds in which the kernel ends a process, also on a loaded machine."""


def gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have noticed."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def test_helper_ends_with_an_agent_that_is_killed(
    agent: tuple[subprocess.Popen[str], int],
) -> None:
    running, helper = agent
    running.kill()
    wait_for(lambda: gone(helper), "the helper ends", SOON)


def test_helper_that_is_busy_ends_with_an_agent_that_is_killed() -> None:
    """It must not do the rest of an order under the successor."""
    busy = AGENT.replace("file.read()", "time.sleep(3600)")
    agent = start(f"import time\n{busy}helper.channel.ask('status')")
    assert agent.stdout is not None
    helper = int(agent.stdout.readline())
    wait_for(lambda: sleeps(helper), "the helper is busy")
    agent.kill()
    wait_for(lambda: gone(helper), "the helper ends", SOON)
    agent.communicate()


def sleeps(pid: int) -> bool:
    """Whether a process sleeps for a time, and waits for no socket."""
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


def test_signals_to_the_whole_group_leave_the_helper_to_the_agent() -> None:
    """The agent needs it until it has given its devices back."""
    program = """
helper.channel.ask("status")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    os.kill(helper.pid, number)
print(json.dumps(helper.channel.ask("status").value))
helper.close()
"""
    pid, status = run(f"import signal\n{AGENT}{program}").splitlines()
    assert fields(json.loads(status))["Pid"] == pid
    assert gone(int(pid))


def test_signals_that_come_when_the_helper_is_forked_do_not_end_it() -> None:
    before = """
import os, signal
fork = os.fork
def fork_and_signal():
    pid = fork()
    if pid == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
    return pid
os.fork = fork_and_signal
"""
    after = """
print(json.dumps(helper.channel.ask("status").value))
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    _, status, blocked_by_agent = run(f"{before}{AGENT}{after}").splitlines()
    assert int(fields(json.loads(status))["SigBlk"], 16) == 0
    assert blocked_by_agent == "set()"


def test_helper_that_hangs_does_not_keep_the_agent() -> None:
    program = (
        AGENT.replace("file.read()", "time.sleep(60)")
        + """
import threading
ask = lambda: helper.channel.ask("status")
threading.Thread(target=ask, daemon=True).start()
time.sleep(0.2)
before = time.monotonic()
helper.close()
print(time.monotonic() - before)
"""
    )
    helper, seconds = run("import time\n" + program).split()
    assert PATIENCE <= float(seconds) < PATIENCE + 10
    wait_for(lambda: gone(int(helper)), "the helper ends with its agent")


def fields(status: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines())


def test_helper_has_what_it_needs_and_no_more() -> None:
    program = AGENT + "print(json.dumps(helper.channel.ask('status').value))"
    status = fields(json.loads(run(program).splitlines()[1]))
    only = f"{1 << process.NET_ADMIN:016x}"
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert status[name] == only
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16, "0" * 16)
    assert status["NoNewPrivs"] == "1"
    assert status["Name"] == "a-helper"


def test_helper_has_no_descriptor_of_the_agents() -> None:
    program = """
import os
secret = os.open("/etc/passwd", os.O_RDONLY)
""" + AGENT.replace("file.read()", "(os.listdir('/proc/self/fd'))")
    program += "print(helper.channel.ask('status').value)"
    shown = run(program).splitlines()[1]
    # Standard input, output and error, the channel, the file and the directory.
    assert shown.count("'") == 2 * 6, shown


def test_agent_has_no_capability_and_cannot_get_one() -> None:
    program = GIVE_UP + "print(open('/proc/self/status').read())"
    status = fields(run(program).strip())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert status[name] == "0" * 16
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("open('/etc/vhostpci-test', 'w')", "Permission denied"),
        ("open('/proc/sys/net/ipv4/ip_forward', 'r+')", "Permission denied"),
        ("open('/sys/bus/pci/drivers_probe', 'w')", "Permission denied"),
        ("os.mknod('/tmp/vhostpci-test', 0o60600, os.makedev(8, 0))", None),
        ("os.setuid(0)", None),
        ("os.chroot('/tmp')", None),
        ("__import__('socket').socket(17, 3, 0)", None),  # AF_PACKET
        ("os.kill(1, 0)", None),
    ],
)
def test_agent_that_was_taken_over_cannot(what: str, why: str | None) -> None:
    said = run(f"{GIVE_UP}print(refused(lambda: {what}))").strip()
    assert said == (why or "Operation not permitted")


def test_other_processes_of_its_user_do_not_see_its_memory() -> None:
    agent = start(f"{GIVE_UP}print(os.getpid(), flush=True); os.read(0, 1)")
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    try:
        said = run(f"{GIVE_UP}print(refused(lambda: open('/proc/{pid}/mem', 'rb')))")
    finally:
        agent.communicate("\n")
    assert said == "Permission denied\n"


def test_memory_is_hidden_without_another_user_too() -> None:
    program = """
import ctypes
from vhostpci_guest.privileges import process
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
process.hide_memory()
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    assert run(program) == "1 0\n"


def test_user_is_known_by_name_and_by_number() -> None:
    assert parse_user("root") == parse_user("0")
    assert parse_user("root").uid == 0
    for text in ("nosuchuser", "4294967297", "-1", ""):
        with pytest.raises(ValueError, match="has no user"):
            parse_user(text)


def test_default_is_a_user_without_rights() -> None:
    assert default_user().uid != 0


def test_owner_of_a_socket_may_connect_to_it(tmp_path: Path) -> None:
    socket = tmp_path / "net0.ivshmem"
    os.chown(tmp_path, 65534, 65534)
    found = owner(socket)  # the daemon is not there yet
    assert found is not None
    assert found.uid == 65534
    socket.touch()
    assert owner(socket) == parse_user("root")
    os.chown(socket, 4711, 4712)
    assert owner(socket) == User("4711", 4711, 4712)
    assert owner(tmp_path / "no/such/socket") is None


def test_limit_may_be_set_again_without_any_capability() -> None:
    """An agent that is started with none is no error."""
    program = GIVE_UP + "separation.give_up(None, asked=False)\nprint('done')"
    assert run(program) == "done\n"


def test_user_that_was_asked_for_must_be_possible() -> None:
    program = f"""{GIVE_UP}
from vhostpci_guest.errors import Unusable
try:
    separation.give_up(User("root", 0, 0), asked=True)
except Unusable as why:
    print(why)
"""
    assert "cannot become the user root: Operation not permitted" in run(program)
