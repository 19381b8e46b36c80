# SPDX-License-Identifier: Apache-2.0
"""A slave VM gets its devices while it runs, when a master connects.

  master            vhostpci-host            slave
virtio-net ------ vhost-user   QMP ------- root ports
 memfd               |                     window 0, windows of memory: they
10.77.0.1            +------ ivshmem ------- come and go; vhostpci-guest run
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import image, memory, qemu, traffic, wheels
from tests.vm.daemon import Daemon
from tests.vm.harness import Job
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, TAP, Master, Pair, Slave
from tests.waiting import wait_for

pytestmark = pytest.mark.vm

MIB = 2**20
WINDOWS = "grep -l 0x1110 /sys/bus/pci/devices/*/device | wc -l"
"""How many ivshmem devices the slave has."""


@pytest.fixture(scope="module")
def slave(logs: Path) -> Iterator[Slave]:
    """A slave VM with three ports, and nothing in them."""
    with new_slave(logs / "hotplug", ports=3) as slave:
        yield slave


@pytest.fixture
def daemon(
    slave: Slave, logs: Path, request: pytest.FixtureRequest
) -> Iterator[Daemon]:
    """A daemon that plugs into that VM."""
    socket = slave.run_dir / "slave-qmp"
    with Daemon("card", logs=logs / request.node.name, slave_qmp=socket) as daemon:
        yield daemon
    slave.wait_for(f"test $({WINDOWS}) = 0")


@contextmanager
def new_slave(
    logs: Path, *, ports: int, monitor: Path | None = None, chipset: str = "q35"
) -> Iterator[Slave]:
    """Boot a slave VM; the daemon may know its monitor before it is there."""
    args = qemu.ports(ports, "1G")
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
def new_master(daemon: Daemon, ram: memory.Args | None = None) -> Iterator[Master]:
    """Boot a master, and give it its address."""
    args = [*daemon.card(), *(ram or memory.memfd("256M"))]
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


def assert_packets_cross(daemon: Daemon, master: Master, slave: Slave) -> None:
    link = Pair(daemon, master, slave)
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent


def test_devices_come_and_go_with_the_master(slave: Slave, daemon: Daemon) -> None:
    with agent(slave):
        for _ in range(2):
            with new_master(daemon) as master:
                assert_packets_cross(daemon, master, slave)
                wait_windows(slave, 2)
                assert daemon.status()["plugging"]["problem"] == ""
                master.reload_driver()  # its interrupts are new ones then
                master.configure()
                assert_packets_cross(daemon, master, slave)
            wait_windows(slave, 0)
            slave.wait_for(f"! ip link show {TAP} | grep -q LOWER_UP")


def test_the_daemon_sleeps_while_packets_flow(slave: Slave, daemon: Daemon) -> None:
    """Kicks and interrupts go from VM to VM: the packets wake nobody else."""
    with agent(slave), new_master(daemon) as master:
        assert_packets_cross(daemon, master, slave)
        idle = wakes(daemon, master, "sleep 4")
        relayed = [ring["kicks_relayed"] for ring in daemon.status()["rings"]]
        with traffic.pinging(slave, MASTER_ADDRESS, interval=0.02) as stream:
            busy = wakes(daemon, master, "sleep 4")
        rings = daemon.status()["rings"]
        assert stream.result().received > 60
        assert all(ring["kick_direct"] for ring in rings)
        assert [ring["kicks_relayed"] for ring in rings] == relayed
        assert sum(ring["agent"]["kicks"] for ring in rings) > 60
        assert busy <= idle + 10


def wakes(daemon: Daemon, master: Master, command: str) -> int:
    """How often the daemon wakes while a command runs in the master."""
    before = _switches(daemon.pid)
    master.run(command)
    return _switches(daemon.pid) - before


def _switches(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise ValueError(f"no context switches of process {pid}")


def test_dimm_that_comes_while_packets_flow(slave: Slave, daemon: Daemon) -> None:
    """One more device is plugged into the slave, and no packet is lost."""
    with agent(slave), new_master(daemon, memory.with_slots("512M")) as master:
        assert_packets_cross(daemon, master, slave)
        wait_windows(slave, 2)
        with (
            traffic.pinging(master, SLAVE_ADDRESS) as up,
            traffic.pinging(slave, MASTER_ADDRESS) as down,
        ):
            memory.plug_dimm(master, 256 * MIB)
            wait_windows(slave, 3)
            for running in (up, down):
                running.wait_answers(11)  # the DIMM is in use now
        link = Pair(daemon, master, slave)
        for running in (up, down):
            ping = running.result()
            evidence = f"{running.output()}\n{link.counters()}"
            assert ping.received == ping.sent > 10, evidence


def test_memory_that_no_bar_can_show_is_refused(slave: Slave, daemon: Daemon) -> None:
    """The master boots all the same, and no QEMU comes to harm."""
    with new_master_without_link(daemon, memory.memfd("320M")) as master:
        said = daemon.output()
        assert "which is a power of two" in said
        assert "size=512M" in said
        assert master.is_running()
    assert slave.is_running()


@contextmanager
def new_master_without_link(daemon: Daemon, ram: memory.Args) -> Iterator[Master]:
    """Boot a master up to its driver."""
    args = [*daemon.card(), *ram]
    logs = daemon.log.parent
    with Master("master", image.build(), logs=logs, args=args) as master:
        master.wait_ready()
        master.run("modprobe virtio_net && ip link set eth0 up")
        yield master


def test_slave_without_an_agent_and_one_that_reboots(
    slave: Slave, daemon: Daemon
) -> None:
    with new_master(daemon) as master:
        wait_windows(slave, 2)
        with agent(slave):
            assert_packets_cross(daemon, master, slave)
        slave.reboot()
        wait_windows(slave, 2)
        with agent(slave):
            assert_packets_cross(daemon, master, slave)
    wait_windows(slave, 0)


def test_slave_that_comes_late_first_without_ports(logs: Path, tmp_path: Path) -> None:
    here, monitor = logs / "late", tmp_path / "qmp"
    with (
        Daemon("card", logs=here, slave_qmp=monitor) as daemon,
        new_master(daemon) as master,
    ):
        problem = daemon.status()["plugging"]["problem"]
        assert f"waiting for the slave VM at {monitor}" in problem
        with new_slave(here / "without", ports=0, monitor=monitor):
            said = wait_problem(daemon, "no free PCI port")
            assert "-device pcie-root-port" in said
            assert "pref64-reserve=512M" in said
        with new_slave(here / "with", ports=2, monitor=monitor) as slave, agent(slave):
            assert_packets_cross(daemon, master, slave)


def test_slave_whose_devices_are_side_by_side_on_i440fx(
    logs: Path, tmp_path: Path
) -> None:
    """Their registers share a page, and there is no vIOMMU."""
    here, monitor = logs / "i440fx", tmp_path / "qmp"
    with (
        new_slave(here, ports=0, monitor=monitor, chipset="pc") as slave,
        Daemon("card", logs=here, slave_qmp=monitor) as daemon,
        agent(slave, "sysfs"),
        new_master(daemon) as master,
    ):
        assert_packets_cross(daemon, master, slave)


def wait_problem(daemon: Daemon, text: str) -> str:
    """Return what stands in the way, once it is that."""

    def problem() -> str:
        return str(daemon.status()["plugging"]["problem"])

    wait_for(lambda: text in problem(), problem)
    return problem()
