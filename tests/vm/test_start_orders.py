# SPDX-License-Identifier: Apache-2.0
"""The VMs start in either order, the agent before or after the master's driver.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
 1st or 2nd          always there             2nd or 1st
"""

import pytest

from tests.findings import Findings, at, good, parse
from tests.vm import pair
from tests.vm.daemon import Daemon
from tests.vm.harness import Vm
from tests.vm.pair import TAP, Pair

pytestmark = pytest.mark.vm


@pytest.fixture
def pair_down(daemon: Daemon) -> Pair:
    """A daemon and both VMs, not started."""
    return Pair(daemon, *pair.make(daemon, daemon.log.parent))


def test_master_first(pair_down: Pair) -> None:
    with pair_down.master as master:
        master.wait_ready()
        with pair_down.slave as slave:
            slave.wait_ready()
            _assert_doctor_sees_what_is_wrong(slave)
            with slave.agent("vfio"):
                _assert_packets_cross(pair_down)
                _assert_doctors_see_nothing_wrong(pair_down)


def test_slave_and_its_agent_first_and_then_one_master_after_another(
    pair_down: Pair, daemon: Daemon
) -> None:
    no_carrier = f"ip link show {TAP} | grep -q NO-CARRIER"
    with pair_down.slave as slave:
        slave.wait_ready()
        with slave.agent("vfio"):
            slave.wait_for(no_carrier)
            with pair_down.master as master:
                master.wait_ready()
                _assert_packets_cross(pair_down)
            slave.wait_for(no_carrier)
            second, _ = pair.make(daemon, daemon.log.parent)
            with second:
                second.wait_ready()
                _assert_packets_cross(Pair(daemon, second, slave))


def _doctor(slave: Vm) -> Findings:
    return parse(slave.run("vhostpci-guest doctor -j", check=False, timeout=60).stdout)


HOLD = """
modprobe uio_pci_generic
device=$(dirname $(grep -l 0x1110 /sys/bus/pci/devices/*/device))
echo uio_pci_generic > $device/driver_override
echo ${device##*/} > /sys/bus/pci/drivers_probe
sleep 1000 9<> /dev/uio0 > /dev/null 2>&1 &
echo $! > /tmp/holder
"""
RELEASE = """
kill $(cat /tmp/holder)
device=$(dirname $(grep -l 0x1110 /sys/bus/pci/devices/*/device))
echo ${device##*/} > $device/driver/unbind
echo > $device/driver_override
"""
"""Let a process have the device, and not have it."""


def _assert_doctor_sees_what_is_wrong(slave: Vm) -> None:
    """Look at a slave without an agent, first with two faults more."""
    slave.run("mv /dev/net/tun /dev/net/none")
    slave.run(HOLD)
    found = _doctor(slave)
    assert at("error", found) == {"tun", "driver"}, found
    slave.run(RELEASE)
    slave.run("mv /dev/net/none /dev/net/tun")
    found = _doctor(slave)
    assert at("error", found) == {"agent"}, found
    # The metadata of a device that is not bound: its daemon beats.
    assert good(found, "metadata", "daemon", "vectors", "position"), found


def _assert_doctors_see_nothing_wrong(link: Pair) -> None:
    found = _doctor(link.slave)
    assert at("error", found) == set(), found
    assert good(found, "agent", "metadata", "iommu", "rings", "tap", "tap-mac"), found
    found = link.daemon.doctor()
    # Without KVM the machine's own check warns.
    assert at("warn", found) - {"kvm"} == set(), found
    # Of the QEMUs' command lines, as they are.
    assert good(found, "qemu-sockets", "memory-shared", "memory-regions"), found
    assert good(found, "slave-vectors", "slave-viommu", "slave-address-bits"), found


def _assert_packets_cross(link: Pair) -> None:
    link.master.configure()
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent
