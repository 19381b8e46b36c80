# SPDX-License-Identifier: Apache-2.0
"""An agent and the master's driver end and come back; all else stays.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
 reloaded                                     ended, started
"""

from collections.abc import Iterator

import pytest

from tests.vm import traffic
from tests.vm.pair import SLAVE_ADDRESS, TAP, Pair

pytestmark = pytest.mark.vm

each_bind = pytest.mark.parametrize("served", ["vfio", "sysfs"], indirect=True)
vfio = pytest.mark.parametrize("served", ["vfio"], indirect=True)
BOUND = "ls -d /sys/bus/pci/drivers/*/0000:*"
TAKEN_OVER = """
import glob, subprocess
from vhostpci_guest.cli import separation
from vhostpci_guest.privileges.user import default_user

separation.give_up(default_user(), asked=True)
(card,) = glob.glob("/sys/bus/pci/drivers/virtio-pci/0000:*/driver_override")[:1]
for path in ("/etc/passwd", "/sys/bus/pci/drivers_probe", card, "/dev/net/tun"):
    try:
        open(path, "r+b")
    except OSError as error:
        print(error.strerror)
print(subprocess.run(["modprobe", "uio_pci_generic"], capture_output=True).stderr)
"""
"""What an agent that serves would do if a master had taken it over."""


@pytest.fixture
def served(booted: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both VMs with an agent for one test, which binds its device as a parameter says.

    After the test the agent must still run, and must have all rings running.
    """
    with booted.slave.agent(request.param) as agent:
        yield booted
        assert agent.poll() is None, agent.output()
        (status,) = booted.slave.agents()
        states = {ring["state"] for ring in status["rings"]}
        assert states == {"running"}, status


@each_bind
def test_ping_comes_back_after_each_of_three_reloads(link: Pair) -> None:
    for _ in range(3):
        link.master.reload_driver()
        link.assert_packets_cross()


@vfio
def test_the_tap_has_no_carrier_while_the_driver_is_unloaded(link: Pair) -> None:
    link.master.run("modprobe -r virtio_net")
    try:
        link.slave.wait_for(f"ip link show {TAP} | grep -q NO-CARRIER")
    finally:
        link.master.run("modprobe virtio_net")
    link.master.configure()
    link.wait_link()


@vfio
def test_a_reload_under_load_leaves_a_link_that_works(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        client = link.master.spawn(
            f"exec iperf3 -c {SLAVE_ADDRESS} -t 60 --connect-timeout 5000"
        )
        link.master.wait_for(
            "test $(cat /sys/class/net/eth0/statistics/tx_packets) -gt 500"
        )
        link.master.reload_driver()
        client.stop()
    link.assert_packets_cross()


def test_the_device_is_put_back_when_the_agent_ends(booted: Pair) -> None:
    before = booted.slave.run(BOUND).stdout
    assert "vfio-pci/" not in before
    with booted.slave.agent("vfio") as agent:
        assert "vfio-pci/" in booted.slave.run(BOUND).stdout
        assert agent.stop() == 0
    assert booted.slave.run(BOUND).stdout == before
    assert booted.slave.run(f"ip link show {TAP}", check=False).rc != 0


def test_serving_agent_has_no_rights(booted: Pair) -> None:
    with booted.slave.agent("vfio"):
        names = booted.slave.run("ls /run/vhostpci-guest").stdout.split()
        (pid,) = [name.removesuffix(".sock") for name in names]
        text = booted.slave.peek(f"/proc/{pid}/status") or ""
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        for sets in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[sets] == "0" * 16
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == ["65534"] * 4
    assert booted.slave.run("ls /run/vhostpci-guest").stdout == ""


def test_agent_that_was_taken_over_reaches_nothing_else(booted: Pair) -> None:
    booted.slave.put("/tmp/taken_over.py", TAKEN_OVER.encode())
    # An agent before may have loaded it.
    booted.slave.run("modprobe -r uio_pci_generic")
    said = booted.slave.run("python3 /tmp/taken_over.py").stdout.splitlines()
    assert said[:4] == ["Permission denied"] * 4
    assert "Operation not permitted" in said[4]


def test_packets_cross_again_with_the_next_agent(booted: Pair) -> None:
    for bind in ("vfio", "sysfs", "vfio"):
        with booted.slave.agent(bind):
            booted.assert_packets_cross()
