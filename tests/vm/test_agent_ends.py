# SPDX-License-Identifier: Apache-2.0
"""The agent ends and leaves the slave VM as it found it; another one takes over.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
                                             ends, starts
"""

import pytest

from tests.vm.pair import TAP, Pair

pytestmark = pytest.mark.vm


def test_the_device_is_put_back_when_the_agent_ends(booted: Pair) -> None:
    bound = "ls -d /sys/bus/pci/drivers/*/0000:*"
    before = booted.slave.run(bound).stdout
    with booted.slave.agent("vfio") as agent:
        assert "vfio-pci/" in booted.slave.run(bound).stdout
        assert agent.stop() == 0
    assert booted.slave.run(bound).stdout == before
    assert "vfio-pci/" not in before
    assert booted.slave.run(f"ip link show {TAP}", check=False).rc != 0


def test_packets_cross_again_with_the_next_agent(booted: Pair) -> None:
    for bind in ("vfio", "sysfs", "vfio"):
        with booted.slave.agent(bind):
            booted.master.configure()
            booted.wait_link()
            ping = booted.ping_both_ways()
            assert ping.received == ping.sent
