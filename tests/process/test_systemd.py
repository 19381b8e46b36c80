# SPDX-License-Identifier: Apache-2.0
"""The units that we ship, under systemd itself: 252 of Debian 12, 257 of Debian 13.

this machine                            a machine that systemd has booted
FrontEnd (a master's QEMU) ──────────────► vhostpci-host.service ──► descriptor store
SlaveClient (a slave's QEMU) ────────────►     (user vhostpci)
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.fakes.frontend import Dropped, FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.install import readme
from tests.process.systemd_machine import Machine, machine
from tests.vm.image import CHECKOUT
from tests.waiting import wait_for
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.process

UNIT = "vhostpci-host.service"
MIB = 1 << 20
FILE = 'socket-group = "kvm"\n[device.net0]\nmemory = "16M"\n'
GROUPS = "[Service]\nSupplementaryGroups=kvm\n"
"""The drop-in that gives the daemon's user a group of the QEMUs' user."""
ATTACH = 'mode = "attach"\n'
NONE = "0" * 16
"""No capability, in /proc."""
GOES_ON = "net0: goes on where an earlier daemon has ended"


class Service:
    """The daemon's service, with the device net0."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._log_start = len(self._lines())

    def systemctl(self, verb: str) -> None:
        """Have systemd do something with it, and wait until that is done."""
        self.machine.run("systemctl", verb, UNIT)

    def _lines(self) -> list[str]:
        return self.machine.journal("-u", UNIT).splitlines()

    @property
    def pid(self) -> int:
        """The daemon's process, by its number in the machine."""
        return int(self.machine.show(UNIT, "MainPID"))

    def said(self, text: str) -> int:
        """Return how many lines of the log of this test contain `text`."""
        return sum(text in line for line in self._lines()[self._log_start :])

    def descriptors(self) -> int:
        """Return how many descriptors the daemon has."""
        return len(self.machine.run("ls", f"/proc/{self.pid}/fd").split())

    def kept(self) -> int:
        """Return how many descriptors systemd keeps for it."""
        return int(self.machine.show(UNIT, "NFileDescriptorStore"))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the daemon."""
        self.machine.run("kill", f"-{number.name.removeprefix('SIG')}", str(self.pid))

    def wait_successor(self, before: int) -> None:
        """Wait until another process than `before` serves."""
        wait_for(
            lambda: (
                self.pid not in (0, before)
                and self.machine.show(UNIT, "SubState") == "running"
            ),
            lambda: self.machine.journal(),
        )

    @contextmanager
    def pair(self) -> Iterator[tuple[FrontEnd, SlaveClient]]:
        """Connect a master and a slave, and start the master's rings."""
        with ExitStack() as stack:
            slave = SlaveClient(self.machine.path("/run/vhostpci/net0.ivshmem"))
            stack.callback(slave.close)
            slave.handshake(3)
            arena = self.machine.path("/dev/shm/vhostpci/net0")
            memory = os.open(arena, os.O_RDWR)
            stack.callback(os.close, memory)
            transport = Socket(self.machine.path("/run/vhostpci/net0.vhost-user"))
            master = FrontEnd(transport, [(region(16 * MIB), memory)])
            stack.enter_context(master)
            master.connect()
            master.driver_ok([RingAt.nth(0), RingAt.nth(1)])
            slave.catch_up()
            yield master, slave


def installed() -> dict[str, str]:
    """Return the files that the commands of our documentation install, by place."""
    lines = readme.commands("docs/operations.md", "**Install.**")
    pairs = (line.split()[-2:] for line in lines if line.startswith("install "))
    return {place: (CHECKOUT / source).read_text() for source, place in pairs}


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def booted(request: pytest.FixtureRequest) -> Iterator[Machine]:
    drop_in = {f"/etc/systemd/system/{UNIT}.d/groups.conf": GROUPS}
    with machine(request.param, installed() | drop_in) as booted:
        yield booted


@pytest.fixture
def service(booted: Machine) -> Iterator[Service]:
    """The service, started for one test."""
    booted.write("/etc/vhostpci.toml", FILE)
    service = Service(booted)
    service.systemctl("start")
    yield service
    service.systemctl("stop")
    booted.run("rm", "-rf", "/dev/shm/vhostpci/net0")


def works(master: FrontEnd, slave: SlaveClient) -> bool:
    """Whether the daemon answers, and passes a kick on."""
    master.ask(Request.GET_FEATURES)
    master.kick(1)
    return slave.interrupted(2)


ENDS: dict[str, Callable[[Service], object]] = {
    "killed": lambda service: service.send(signal.SIGKILL),
    "hangs": lambda service: service.send(signal.SIGSTOP),
    "SIGUSR2": lambda service: service.send(signal.SIGUSR2),
    "systemctl": lambda service: service.systemctl("restart"),
    "command": lambda service: service.machine.run("vhostpci-host", "restart"),
}
"""Ways in which a daemon ends and has a successor."""


def test_no_one_notices_that_the_daemon_has_a_successor(service: Service) -> None:
    """Nor does it leak a descriptor, and systemd keeps none twice."""
    with service.pair() as (master, slave):
        found = []
        for count, end in enumerate(ENDS.values(), start=1):
            before = service.pid
            end(service)
            service.wait_successor(before)
            assert works(master, slave)
            assert service.said(GOES_ON) == count
            found.append((service.descriptors(), service.kept()))
        assert found == [found[0]] * len(ENDS)
        assert not service.said("front-end disconnected")
        assert [master.stop_ring(index) for index in range(2)] == [0, 0]


def test_reload_reads_the_file_again(service: Service) -> None:
    with service.pair() as (master, slave):
        before = service.pid
        service.machine.write("/etc/vhostpci.toml", FILE + "[device.net1]\n" + ATTACH)
        service.systemctl("reload")
        assert "net1" in service.machine.run("vhostpci-host", "list")
        service.machine.write("/etc/vhostpci.toml", "nonsense\n")
        refused = service.machine.attempt("systemctl", "reload", UNIT)
        assert refused.returncode
        assert service.said("this is not TOML")
        assert service.pid == before
        assert works(master, slave)


def test_stop_is_an_end_for_the_master_and_a_start_takes_its_memory_over(
    service: Service,
) -> None:
    with service.pair() as (master, _):
        service.systemctl("stop")
        with pytest.raises(Dropped):
            master.ask(Request.GET_FEATURES)
        assert service.machine.show(UNIT, "Result") == "success"
        service.systemctl("start")
        assert not service.said(GOES_ON)
    with service.pair() as (master, slave):
        assert works(master, slave)


def test_what_a_daemon_may_do(service: Service) -> None:
    """It has no capability, no other user's files, and no network."""
    status = service.machine.run("cat", f"/proc/{service.pid}/status")
    words = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert [words[f"Cap{name}"] for name in ("Eff", "Prm", "Bnd", "Amb")] == [NONE] * 4
    assert words["NoNewPrivs"] == "1"
    assert words["Seccomp"] == "2"
    assert set(words["Uid"].split()) == {
        service.machine.run("id", "-u", "vhostpci").strip()
    }
    place = ("/run/vhostpci/net0.vhost-user", "/dev/shm/vhostpci/net0")
    owners = service.machine.run("stat", "-c", "%U:%G %a", *place)
    assert owners.splitlines() == ["vhostpci:kvm 660"] * 2
    security = service.machine.run("systemd-analyze", "security", "--no-pager", UNIT)
    assert float(security.split()[-3]) < 1
