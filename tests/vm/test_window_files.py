# SPDX-License-Identifier: Apache-2.0
"""What becomes of a window that another process has mapped, when the agent is done.

 test (ivshmem server)              slave
window 4711 --- QMP --- root port --- agent: binds it ── file ──► a back-end maps it
"""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.vm import modules, qemu
from tests.vm.bare_slave import Slave, started
from tests.vm.card import MIB, plugged
from tests.vm.harness import Job
from vhostpci_shared import metadata as md

pytestmark = pytest.mark.vm

W, NEXT = 4711, 4712

# It binds the window as an agent does, and gives its file to a process, as a data plane
# does.  It closes the window when it is asked to, or has to.
AGENT = """
import logging, signal, subprocess, sys, time
from vhostpci_guest.pci import bindings, search
logging.basicConfig(level="INFO")
way, address, log = sys.argv[1:]
device = bindings.bind(search.at(address), way)
file, size = device.window.file, device.window.size
command = [sys.executable, "/tmp/back_end.py", str(file.fd), str(size)]
back_end = subprocess.Popen(
    command, pass_fds=[file.fd], stdout=open(log, "w"), start_new_session=True)
file.holders.append(back_end.pid)
print("the back-end is", back_end.pid, flush=True)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
while not asked and not device.lost:
    time.sleep(0.05)
start = time.monotonic()
device.close()
print(f"closed after {time.monotonic() - start:.2f} s", flush=True)
print("it ended by", back_end.wait() if way == "vfio" else back_end.poll(), flush=True)
"""
# It never unmaps.
BACK_END = """
import mmap, sys, time
fd, size = map(int, sys.argv[1:])
window, last = mmap.mmap(fd, size), None
while True:
    if window[0] != last:
        last = window[0]
        print("reads", last, flush=True)
    time.sleep(0.02)
"""
# It follows vhost-user, and never unmaps.
VHOST_USER_BACK_END = """
import mmap, sys, time
sys.path.insert(0, sys.argv[3])
from tests.fakes.back_end import FakeBackEnd, Request
back_end, window = FakeBackEnd.connect(sys.argv[1]), b" "
while True:
    back_end.was_left
    memory = back_end.fds.get(Request.SET_MEM_TABLE)
    if memory and window == b" ":
        window = mmap.mmap(memory[0], int(sys.argv[2]))
        print("has mapped it", flush=True)
    window[0]
    time.sleep(0.02)
"""
MEMORY = md.Region(guest_addr=0, size=MIB - md.SIZE, window=0, offset=0)


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with a root port, whose kernel lets BAR 2 be mapped beside vfio."""
    logs = tmp_path_factory.mktemp("window-files")
    with started(logs, list(qemu.ports(1))) as slave:
        slave.vm.put("/tmp/agent.py", AGENT.encode())
        slave.vm.put("/tmp/back_end.py", BACK_END.encode())
        yield slave


@pytest.fixture
def slave(booted: Slave) -> Iterator[Slave]:
    """The VM with nothing plugged."""
    yield booted
    booted.close()


class Given:
    """A window that the agent has given to a back-end, which has mapped it."""

    def __init__(self, slave: Slave, way: str) -> None:
        self._vm = slave.vm
        self.memory = slave.plug(W, MIB, "port0")
        self.write(1)
        self.address, _ = slave.wait_windows(W)[W]
        self._log = "/tmp/back_end.log"
        self._vm.run(f"rm -f {self._log}")
        self.agent: Job = self._vm.spawn(
            f"exec python3 /tmp/agent.py {way} {self.address} {self._log}"
        )
        self.wait_reads(1)

    def write(self, value: int, memory: int | None = None) -> None:
        os.pwrite(self.memory if memory is None else memory, bytes([value]), 0)

    def wait_reads(self, value: int) -> None:
        """Wait until the back-end has read a value from the window."""
        self._vm.wait_until(
            lambda: f"reads {value}\n" in (self._vm.peek(self._log) or ""),
            lambda: (self._vm.peek(self._log), self.agent.output()),
        )

    @property
    def back_end(self) -> str:
        """Its process ID."""
        (line,) = [x for x in self.agent.output().splitlines() if "back-end is" in x]
        return line.split()[-1]

    def kill_back_end(self) -> None:
        self._vm.run(["kill", "-9", self.back_end])


def test_vfio_takes_the_window_from_a_back_end_that_keeps_it(slave: Slave) -> None:
    given = Given(slave, "vfio")
    given.agent.send(signal.SIGTERM)
    given.agent.wait_said("was taken away", f"it ended by -{signal.SIGBUS:d}")
    assert slave.vm.run(f"ls /sys/bus/pci/devices/{given.address}").stdout
    slave.ask_back(W)
    assert slave.goes(W)


def test_unplug_waits_for_no_back_end_and_leaves_it_nothing(slave: Slave) -> None:
    given = Given(slave, "vfio")
    slave.ask_back(W)
    given.agent.wait_said("was taken away", f"it ended by -{signal.SIGBUS:d}")
    assert slave.goes(W), given.agent.output()


def test_unbind_waits_for_no_back_end_of_an_agent_that_was_killed(slave: Slave) -> None:
    given = Given(slave, "vfio")
    given.agent.send(signal.SIGKILL)
    # This is what a copy of a descriptor of VFIO would keep from its end.
    path = f"/sys/bus/pci/devices/{given.address}/driver/unbind"
    slave.vm.run(f"echo {given.address} > {path}", timeout=20)
    given.write(2)
    given.wait_reads(2)
    given.kill_back_end()
    slave.ask_back(W)
    assert slave.goes(W)


def test_next_agent_takes_the_window_from_a_back_end_of_one_that_was_killed(
    slave: Slave,
) -> None:
    given = Given(slave, "vfio")
    given.agent.send(signal.SIGKILL)
    given.write(2)
    given.wait_reads(2)
    command = f"exec python3 /tmp/agent.py vfio {given.address} /tmp/next_back_end.log"
    next_agent = slave.vm.spawn(command)
    next_agent.wait_said("the window was taken from", f"({given.back_end})")
    slave.vm.wait_for(f"! kill -0 {given.back_end}")
    slave.ask_back(W)
    next_agent.wait_said("closed after")
    assert slave.goes(W)


def test_without_a_driver_the_back_end_sees_what_is_plugged_next(slave: Slave) -> None:
    """Nothing takes a window from it, so the agent says that it must be ended."""
    given = Given(slave, "sysfs")
    slave.ask_back(W)
    assert slave.goes(W)
    given.agent.send(signal.SIGTERM)
    given.agent.wait_said("has not unmapped the window", "end that process")
    memory = slave.plug(NEXT, MIB, "port0")
    given.write(3, memory)
    address, _ = slave.wait_windows(NEXT)[NEXT]
    slave.vm.run(f"echo 1 > /sys/bus/pci/devices/{address}/enable")
    given.wait_reads(3)
    given.kill_back_end()
    slave.ask_back(NEXT)
    assert slave.goes(NEXT)


def test_agent_without_privileges_takes_the_window_from_its_back_end(
    slave: Slave,
) -> None:
    vm = slave.vm
    modules.put(vm, "tests.fakes.back_end")
    vm.put("/tmp/vhost_user.py", VHOST_USER_BACK_END.encode())
    path = "/run/back-ends/net0.sock"
    agent = vm.spawn(
        f"exec vhostpci-guest run --bind vfio --data-plane vhost-user:{path}"
    )
    with plugged(slave) as card:
        card.publish(MEMORY)
        vm.wait_for(f"test -S {path}")
        theirs = vm.spawn(
            f"exec python3 /tmp/vhost_user.py {path} {MIB} {modules.PLACE}"
        )
        theirs.wait_said("has mapped it")
        vm.wait_until(
            lambda: (
                {r["state"] for a in vm.agents() for r in a["rings"]} == {"running"}
            ),
            lambda: (vm.agents(), agent.output()),
        )
        slave.ask_back(0)
        agent.wait_said("had not unmapped the window", "was taken away")
        assert slave.goes(0), agent.output()
    assert theirs.wait(20) == -signal.SIGBUS, theirs.output()
    assert agent.stop() == 0, agent.output()
