# SPDX-License-Identifier: Apache-2.0
"""The units that we ship, under systemd itself: 252 of Debian 12, 257 of Debian 13.

this machine                          a machine that systemd has booted
FrontEnd (a master's QEMU) ────────────► vhostpci-host.service ──► descriptor store
SlaveClient (a slave's QEMU) ──────────►        ▲
                                         vhostpci-guest.service (a slave process)
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.fakes.frontend import Dropped, FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.install import readme
from tests.process.systemd_machine import Machine, machine
from tests.vm.image import CHECKOUT
from tests.waiting import wait_for
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.process

SERVICES = "docs/services.md"
UNIT, AGENT = "vhostpci-host.service", "vhostpci-guest.service"
OPTIONS = ("--socket", "/run/vhostpci/net0.ivshmem", "--tap", "vp0")
"""The agent is a slave process here: a machine in namespaces has no PCI devices."""
MIB = 1 << 20
FILE = 'socket-group = "kvm"\n[device.net0]\nmemory = "16M"\n'
GROUPS = "[Service]\nSupplementaryGroups=kvm\n"
"""The drop-in that gives the daemon and the agent a group that both are in."""
ATTACH = 'mode = "attach"\n'
NONE = "0" * 16
"""No capability, in /proc."""
SOCKET = "/run/vhostpci/net0.vhost-user"
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

    def wait_said(self, text: str, times: int = 1) -> None:
        """Wait until so many lines contain `text`; the journal may be behind."""
        wait_for(lambda: self.said(text) == times, self._lines)

    def descriptors(self) -> tuple[int, int]:
        """Return how many the daemon has, but for control connections, and systemd."""
        targets = self.machine.run("ls", "-l", f"/proc/{self.pid}/fd").count(" -> ")
        return targets, int(self.machine.show(UNIT, "NFileDescriptorStore"))

    def settled_descriptors(self) -> tuple[int, int]:
        """Return the same, once it does not change any more."""
        seen = [self.descriptors()]

        def settled() -> bool:
            time.sleep(0.3)
            seen.append(self.descriptors())
            return len(set(seen[-3:])) == 1 and len(seen) >= 3

        # On a busy machine what the daemon before it had takes a moment to close.
        wait_for(settled, lambda: f"descriptors settle: {seen}")
        return seen[-1]

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
            transport = Socket(self.machine.path(SOCKET))
            master = FrontEnd(transport, [(region(16 * MIB), memory)])
            stack.enter_context(master)
            master.connect()
            master.driver_ok([RingAt.nth(0), RingAt.nth(1)])
            slave.catch_up()
            yield master, slave


def installed() -> dict[str, str]:
    """Return the files that the commands of our documentation install, by place."""
    names = ("**Install.**", "**Install the agent's.**")
    lines = [line for name in names for line in readme.commands(SERVICES, name)]
    pairs = (line.split()[-2:] for line in lines if line.startswith("install "))
    return {place: (CHECKOUT / source).read_text() for source, place in pairs}


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def booted(request: pytest.FixtureRequest) -> Iterator[Machine]:
    more = {
        f"/etc/systemd/system/{unit}.d/groups.conf": GROUPS for unit in (UNIT, AGENT)
    }
    more["/etc/default/vhostpci-guest"] = f"OPTIONS={' '.join(OPTIONS)}\n"
    with machine(request.param, installed() | more) as booted:
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
        found = set()
        for count, end in enumerate(ENDS.values(), start=1):
            before = service.pid
            end(service)
            service.wait_successor(before)
            assert works(master, slave)
            service.wait_said(GOES_ON, count)
            found.add(service.settled_descriptors())
        assert len(found) == 1, found
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
        service.wait_said("this is not TOML")
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
    place = (SOCKET, "/dev/shm/vhostpci/net0")
    owners = service.machine.run("stat", "-c", "%U:%G %a", *place)
    assert owners.splitlines() == ["vhostpci:kvm 660"] * 2
    security = service.machine.run("systemd-analyze", "security", "--no-pager", UNIT)
    assert float(security.split()[-3]) < 1


def test_agent_that_hangs_has_a_successor_with_the_same_tap(service: Service) -> None:
    booted = service.machine
    booted.run("systemctl", "start", AGENT)
    index = "/sys/class/net/vp0/ifindex"
    wait_for(lambda: not booted.attempt("cat", index).returncode, booted.journal)
    before = booted.show(AGENT, "MainPID"), booted.run("cat", index)
    booted.run("systemctl", "kill", "--signal=STOP", AGENT)
    booted.wait_shown(AGENT, "NRestarts", "1")
    booted.wait_shown(AGENT, "SubState", "running")
    wait_for(
        lambda: "  ready\n" in booted.attempt("vhostpci-guest", "status").stdout,
        booted.journal,
    )
    assert booted.show(AGENT, "MainPID") != before[0]
    assert booted.run("cat", index) == before[1]
    booted.run("systemctl", "stop", AGENT)
    assert booted.attempt("cat", index).returncode


@pytest.fixture
def activated(booted: Machine) -> Iterator[Service]:
    """The service, which has not been started, and the sockets of net0 and net7."""
    booted.write("/etc/vhostpci.toml", FILE)
    units = [f"vhostpci-host@{name}.socket" for name in ("net0", "net7")]
    booted.run("systemctl", "start", *units)
    yield Service(booted)
    booted.run("systemctl", "stop", *units, UNIT)
    booted.run("rm", "-rf", "/dev/shm/vhostpci/net0")


def test_master_that_connects_before_the_daemon_is_there_starts_it(
    activated: Service,
) -> None:
    assert activated.machine.show(UNIT, "ActiveState") == "inactive"
    with closing(Socket(activated.machine.path(SOCKET))) as first:
        first.send(vu.message(Request.GET_FEATURES), ())
        assert first.receive()
    with activated.pair() as (master, slave):
        found = set()
        for count in (1, 2):
            activated.systemctl("restart")
            assert works(master, slave)
            activated.wait_said(GOES_ON, count)
            found.add(activated.settled_descriptors())
        assert len(found) == 1, found
    # systemd's sockets outlive the daemon; that of no device is not there any more.
    activated.systemctl("stop")
    with activated.pair() as (master, slave):
        assert works(master, slave)
    activated.wait_said("net7.vhost-user: systemd listens there, and no device")
    assert not activated.said("its socket unit must be restarted")
    assert not activated.machine.path("/run/vhostpci/net7.vhost-user").exists()
