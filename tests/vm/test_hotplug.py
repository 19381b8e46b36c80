# SPDX-License-Identifier: Apache-2.0
"""A slave VM gets its devices while it runs, when a master connects.

  master            vhostpci-host            slave
virtio-net ------ vhost-user   QMP ------- root ports
 memfd               |                     window 0, windows of memory: they
10.77.0.1            +------ ivshmem ------- come and go; vhostpci-guest run
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm import image, memory, qemu, traffic, wheels
from tests.vm.daemon import Daemon
from tests.vm.harness import Job
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, TAP, Master, Pair, Slave
from tests.waiting import wait_for

pytestmark = pytest.mark.vm

MIB = 2**20
WINDOWS = "grep -l 0x1110 /sys/bus/pci/devices/*/device | wc -l"
"""How many ivshmem functions the slave has."""


@contextmanager
def new_slave(
    logs: Path, *, root_ports: int, monitor: Path | None = None, chipset: str = "q35"
) -> Iterator[Slave]:
    """Boot a slave VM; `monitor` is one more QMP socket, of a path known before."""
    args = qemu.ports(root_ports, "1G")
    if monitor:
        args += ["-qmp", f"unix:{monitor},server=on,wait=off"]
    with Slave(
        *("slave", image.build(wheels.guest_wheels())),
        logs=logs,
        args=args,
        memory="384M",
        iommu=chipset == "q35",
        chipset=chipset,
    ) as slave:
        slave.wait_ready()
        yield slave


@contextmanager
def new_master(daemon: Daemon, ram: memory.Args) -> Iterator[Master]:
    """Boot a master with this memory, and give it its address."""
    args = [*daemon.card(), *ram]
    logs = daemon.log.parent
    with Master("master", image.build(), logs=logs, args=args) as master:
        master.wait_ready()
        master.configure()
        yield master


@contextmanager
def agent(slave: Slave, bind: str = "vfio") -> Iterator[Job]:
    """Run the agent for all devices that come."""
    address = ("--tap", TAP, "--address", f"{SLAVE_ADDRESS}/24")
    with slave.waiting_agent("--bind", bind, *address) as job:
        yield job


def wait_windows(slave: Slave, count: int) -> None:
    slave.wait_for(f"test $({WINDOWS}) = {count}")


def assert_packets_cross(link: Pair) -> None:
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent


@pytest.fixture(scope="module")
def slave(logs: Path) -> Iterator[Slave]:
    """A slave VM with three root ports, and nothing in them."""
    with new_slave(logs / "hotplug", root_ports=3) as slave:
        yield slave


@contextmanager
def plugging(slave: Slave, logs: Path) -> Iterator[Daemon]:
    """Run a daemon that plugs into the slave VM; nothing may stay plugged in."""
    wait_windows(slave, 0)
    socket = slave.run_dir / "slave-qmp"
    with Daemon("card", logs=logs, slave_qmp=socket) as daemon:
        yield daemon
    assert slave.agents() == []
    wait_windows(slave, 0)


@pytest.fixture
def daemon(
    slave: Slave, logs: Path, request: pytest.FixtureRequest
) -> Iterator[Daemon]:
    """A daemon that plugs into the slave VM."""
    with plugging(slave, logs / request.node.name) as daemon:
        yield daemon


def test_devices_come_and_go_with_the_master(slave: Slave, daemon: Daemon) -> None:
    with agent(slave):
        for _ in range(2):
            with new_master(daemon, memory.memfd("256M")) as master:
                link = Pair(daemon, master, slave)
                assert_packets_cross(link)
                wait_windows(slave, 2)
                assert daemon.status()["plugging"]["problem"] == ""
                master.reload_driver()  # its interrupts are new ones then
                master.configure()
                assert_packets_cross(link)
            wait_windows(slave, 0)
            slave.wait_for(f"! ip link show {TAP} | grep -q LOWER_UP")


@pytest.fixture(scope="class")
def booted(slave: Slave, logs: Path) -> Iterator[Pair]:
    """A daemon and one master for the tests of a class; no agent runs."""
    ram = memory.with_slots(memory.memfd("512M"))
    with plugging(slave, logs / "one-master") as daemon:
        with new_master(daemon, ram) as master:
            yield Pair(daemon, master, slave)
        wait_windows(slave, 0)


@pytest.fixture
def link(booted: Pair) -> Iterator[Pair]:
    """The same master, with a check that a test has left no agent and all windows."""
    assert_as_booted(booted)
    yield booted
    assert_as_booted(booted)


def assert_as_booted(link: Pair) -> None:
    assert link.slave.agents() == []
    wait_windows(link.slave, plugged(link))
    assert plugged(link) >= 2, "window 0 and one of memory at least"


def plugged(link: Pair) -> int:
    """Return how many windows the daemon says that it has plugged in."""
    wait_for(
        lambda: link.daemon.status()["plugging"]["problem"] == "", link.daemon.output
    )
    return len(link.daemon.status()["plugging"]["plugged"])


class TestOneMaster:
    """Tests that leave the master running, so one serves them all."""

    def test_the_daemon_sleeps_while_packets_flow(self, link: Pair) -> None:
        """Kicks and interrupts go from VM to VM: no packet wakes the daemon."""
        daemon = link.daemon
        with agent(link.slave):
            assert_packets_cross(link)
            idle = wakes(daemon)
            before = daemon.status()["rings"]
            with traffic.pinging(link.slave, MASTER_ADDRESS, interval=0.02) as stream:
                busy = wakes(daemon)
                stream.wait_answers(60)
                wait_for(
                    lambda: kicks(daemon.status()["rings"]) - kicks(before) > 60,
                    daemon.status,
                )
            after = daemon.status()["rings"]
            assert stream.result().received > 60
            assert all(ring["kick_direct"] for ring in after)
            assert relayed(after) == relayed(before)
            assert busy <= idle + 2.5

    def test_slave_without_an_agent_and_one_that_reboots(self, link: Pair) -> None:
        windows = plugged(link)
        wait_windows(link.slave, windows)
        with agent(link.slave):
            assert_packets_cross(link)
        link.slave.reboot()
        wait_windows(link.slave, windows)
        with agent(link.slave):
            assert_packets_cross(link)

    def test_dimm_that_comes_while_packets_flow(self, link: Pair) -> None:
        """One more window is plugged into the slave, and no packet is lost."""
        with agent(link.slave):
            assert_packets_cross(link)
            windows = plugged(link)
            wait_windows(link.slave, windows)
            with (
                traffic.pinging(link.master, SLAVE_ADDRESS) as up,
                traffic.pinging(link.slave, MASTER_ADDRESS) as down,
            ):
                memory.plug_dimm(link.master, 256 * MIB)
                wait_windows(link.slave, windows + 1)
                for running in (up, down):
                    running.wait_answers(11)  # the DIMM is in use now
            for running in (up, down):
                ping = running.result()
                evidence = f"{running.output()}\n{link.counters()}"
                assert ping.received == ping.sent > 10, evidence


def relayed(rings: list[dict[str, Any]]) -> list[int]:
    """Return how often the daemon has relayed the kick of each ring."""
    return [ring["kicks_relayed"] for ring in rings]


def kicks(rings: list[dict[str, Any]]) -> int:
    """Return how many kicks the agent has counted."""
    return sum(ring["agent"]["kicks"] for ring in rings)


def wakes(daemon: Daemon) -> float:
    """Return how often a second the daemon wakes; it takes some seconds."""
    start, before = time.monotonic(), _switches(daemon.serving)
    time.sleep(4)
    return (_switches(daemon.serving) - before) / (time.monotonic() - start)


def _switches(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise ValueError(f"no context switches of process {pid}")


def test_memory_that_no_bar_can_show_is_refused(slave: Slave, daemon: Daemon) -> None:
    """The master boots all the same, and no QEMU comes to harm."""
    args = [*daemon.card(), *memory.memfd("320M")]
    logs = daemon.log.parent
    with Master("master", image.build(), logs=logs, args=args) as master:
        master.wait_ready()
        master.run("modprobe virtio_net && ip link set eth0 up")
        daemon.wait_said("which is a power of two", "size=512M")
        assert master.is_running()
    assert slave.is_running()


@dataclass(frozen=True, slots=True)
class Early:
    """A master, and a daemon that waits for a slave VM at a monitor."""

    daemon: Daemon
    master: Master
    monitor: Path


@pytest.fixture(scope="module")
def early(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Early]:
    here, monitor = logs / "early", tmp_path_factory.mktemp("early") / "qmp"
    with (
        Daemon("card", logs=here, slave_qmp=monitor) as daemon,
        new_master(daemon, memory.memfd("256M")) as master,
    ):
        yield Early(daemon, master, monitor)


def test_slave_that_comes_late_first_without_root_ports(
    early: Early, logs: Path
) -> None:
    daemon, monitor = early.daemon, early.monitor
    wait_problem(daemon, f"waiting for the slave VM at {monitor}")
    with new_slave(logs / "without", root_ports=0, monitor=monitor):
        said = wait_problem(daemon, "no free root port")
        assert "-device pcie-root-port" in said
        assert "pref64-reserve=512M" in said
    with (
        new_slave(logs / "with", root_ports=2, monitor=monitor) as slave,
        agent(slave),
    ):
        assert_packets_cross(Pair(daemon, early.master, slave))


def test_slave_whose_devices_are_side_by_side_on_i440fx(
    early: Early, logs: Path
) -> None:
    """Their registers share a page, and there is no vIOMMU."""
    monitor, here = early.monitor, logs / "i440fx"
    wait_problem(early.daemon, f"waiting for the slave VM at {monitor}")
    with (
        new_slave(here, root_ports=0, monitor=monitor, chipset="pc") as slave,
        agent(slave, "sysfs"),
    ):
        assert_packets_cross(Pair(early.daemon, early.master, slave))


def wait_problem(daemon: Daemon, text: str) -> str:
    """Return what stands in the way, once it is that."""

    def problem() -> str:
        return str(daemon.status()["plugging"]["problem"])

    wait_for(lambda: text in problem(), problem)
    return problem()
