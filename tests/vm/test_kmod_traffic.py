# SPDX-License-Identifier: Apache-2.0
"""Packets through uio_vhostpci, in a slave without a vIOMMU, for each kernel.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ uio_vhostpci, vhostpci-guest run -- TAP
10.77.0.1                                    10.77.0.2
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import dmesg, image, kernels, node, qemus, traffic, wheels
from tests.vm.daemon import Daemon
from tests.vm.data_planes import RING, VHOST_NET
from tests.vm.harness import Job
from tests.vm.kernels import Kernel
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, TAP, Master, Pair, Slave

pytestmark = pytest.mark.vm


def under_test() -> list[Kernel]:
    """Those of this machine's Debian, and the newest with the QEMU beside it."""
    chosen = qemus.SUPPORTED.get(os.environ.get("VHOSTPCI_QEMU", ""))
    newest = [chosen.kernel] if chosen and chosen.kernel is kernels.NEWEST else []
    return [kernels.THIS_DEBIAN, kernels.BACKPORTS, *newest]


@pytest.fixture(
    scope="module",
    params=under_test(),
    ids=lambda kernel: kernel.name,
)
def link(request: pytest.FixtureRequest, logs: Path) -> Iterator[Pair]:
    """Both VMs; at the end the log of the slave's kernel must have no error."""
    logs /= f"kmod-{request.param.name}"
    guest = image.build(wheels.guest_wheels(), request.param, module=True)
    with (
        Daemon("card", memory="512M", logs=logs) as daemon,
        Slave("slave", guest, logs=logs, args=daemon.qemu_args("slave")) as slave,
        Master(
            "master", image.build(), logs=logs, args=daemon.qemu_args("master")
        ) as master,
    ):
        slave.wait_ready()
        master.wait_ready()
        yield Pair(daemon, master, slave)
        dmesg.check(slave)


@contextmanager
def served(link: Pair, bind: str = "kmod", plane: str = RING) -> Iterator[Job]:
    """The agent runs, and a first packet has crossed."""
    with link.slave.agent(bind, "--data-plane", plane) as job:
        link.master.configure()
        link.wait_link()
        yield job


def status(link: Pair) -> Any:
    """Return the agent's status of its device."""
    (device,) = json.loads(link.slave.run("vhostpci-guest status -j").stdout)
    return device


def test_agent_loads_the_module_and_prefers_it(link: Pair) -> None:
    with served(link, "auto"):
        found = status(link)
        assert (found["binding"], found["interrupts"]) == ("kmod", True)
        ping = link.ping_both_ways(count=20)
        assert ping.received == ping.sent >= 40


@pytest.fixture(scope="class")
def agent(link: Pair) -> Iterator[Job]:
    """One agent for all tests of a class, with the device bound by our module."""
    with served(link) as agent:
        yield agent


@pytest.fixture
def unharmed(link: Pair, agent: Job) -> Iterator[None]:
    """Fail a test that does not leave the agent and its device as it found them."""
    before = served_device(link)
    yield
    assert agent.poll() is None, agent.output()
    assert served_device(link) == before, agent.output()


def served_device(link: Pair) -> tuple[object, ...]:
    """Return the part of the agent's status that no test may change."""
    (device,) = link.slave.agents()
    rings = [(ring["ring"], ring["state"]) for ring in device["rings"]]
    return device["device"], device["binding"], device["state"], rings


@pytest.mark.usefixtures("unharmed")
class TestOneAgent:
    """Tests that share one agent, since they leave it as they found it."""

    def test_tcp_flows_both_ways(self, link: Pair) -> None:
        with traffic.iperf_server(link.slave):
            assert traffic.tcp(link.master, SLAVE_ADDRESS, seconds=2) > 1
        with traffic.iperf_server(link.master):
            assert traffic.tcp(link.slave, MASTER_ADDRESS, seconds=2) > 1

    def test_idle_agent_sleeps_until_its_vector_fires(self, link: Pair) -> None:
        """Pings with long pauses each cause an interrupt: the agent does not poll."""
        before = interrupts(link.slave)
        ping = traffic.ping(link.master, SLAVE_ADDRESS, count=10, apart=True)
        assert ping.received == 10
        # One interrupt may be for two of them, where the slave waits for a processor.
        assert interrupts(link.slave) - before >= 5

    def test_second_agent_names_the_first_one(self, link: Pair) -> None:
        place = node.address(link.slave)
        second = link.slave.run(f"vhostpci-guest run --device {place}", check=False)
        assert second.rc == 1
        assert f"{place} is in use by another vhostpci-guest" in second.stderr

    def test_devices_shows_what_only_the_agent_can_read(self, link: Pair) -> None:
        text = link.slave.run("vhostpci-guest devices -j", timeout=60).stdout
        (device,) = json.loads(text)
        assert device["agent"] is not None
        assert device["iv_position"] == 0


def interrupts(slave: Slave) -> int:
    """Return how often the vectors of the rings have fired."""
    lines = slave.run("grep 'uio_vhostpci.*-[12]$' /proc/interrupts").stdout
    return sum(int(line.split()[1]) for line in lines.splitlines())


@pytest.mark.parametrize("plane", [RING, VHOST_NET])
def test_unbound_and_removed_under_traffic_and_loaded_again(
    link: Pair, plane: str
) -> None:
    """The agent releases a device that is unbound, and serves it when it is back."""
    slave = link.slave
    with served(link, "kmod", plane) as agent, traffic.iperf_server(slave):
        place = node.address(slave)
        flow = link.master.spawn(f"exec iperf3 -c {SLAVE_ADDRESS} -t 30")
        link.master.run("sleep 1")
        assert flow.poll() is None, flow.output()
        tried = slave.run("rmmod uio_vhostpci", check=False)
        assert "Module uio_vhostpci is in use" in tried.stderr
        slave.run(f"echo {place} > {node.DRIVER}/unbind")
        # It stays a while, for a device that comes back.
        slave.wait_for(f"ip link show {TAP} | grep -q NO-CARRIER")
        slave.run("rmmod uio_vhostpci")
        flow.stop()
        agent.wait_said(f"{place} was taken from uio_vhostpci")
        slave.run("modprobe uio_vhostpci")
        slave.wait_tap(agent)
        link.wait_link()
        ping = link.ping_both_ways()
        assert ping.received == ping.sent >= 20, agent.output()


def test_agent_names_a_program_that_has_the_node_open(link: Pair) -> None:
    with served(link):
        place = node.address(link.slave)
    other = node.use(link.slave)
    try:
        second = link.slave.run(f"vhostpci-guest run --device {place}", check=False)
    finally:
        other.stop()
    assert second.rc == 1
    assert f"{place} is in use by python3" in second.stderr


def test_device_stays_bound_and_is_taken_at_once_next_time(link: Pair) -> None:
    """The module stays bound, as udev bound it, when the agent starts and ends."""
    link.slave.run("modprobe uio_vhostpci")
    place = node.address(link.slave)
    with served(link, "auto"):
        assert node.address(link.slave) == place
    assert node.address(link.slave) == place


def test_module_that_is_loaded_while_an_agent_runs_serves_the_next_agent(
    link: Pair,
) -> None:
    """A second mapping would be uncached too, like that of the agent through sysfs."""
    slave = link.slave
    slave.run("modprobe -r uio_vhostpci")
    with served(link, "sysfs"):
        slave.run("modprobe uio_vhostpci")
        slave.run(f"! ls {node.DRIVER} | grep :")
        ping = link.ping_both_ways()
        assert ping.received == ping.sent
    with served(link, "auto"):
        assert status(link)["binding"] == "kmod"
        slave.run(
            "grep -q debugfs /proc/mounts || mount -t debugfs d /sys/kernel/debug"
        )
        listed = slave.run("cat /sys/kernel/debug/x86/pat_memtype_list").stdout
        assert f"[mem {window_range(slave)}] write-back" in listed


def window_range(slave: Slave) -> str:
    """Return the addresses of BAR 2 in the form of the list of memory types."""
    path = f"/sys/bus/pci/devices/{node.address(slave)}/resource"
    start, end, _ = slave.run(f"sed -n 3p {path}").stdout.split()
    return f"{int(start, 16):#018x}-{int(end, 16) + 1:#018x}"
