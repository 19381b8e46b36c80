# SPDX-License-Identifier: Apache-2.0
"""Each VM ends in all ways and comes back, or stands still, while the other pings it.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
              kept by its parent process
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm import crash_kernel, lives, power
from tests.vm.lives import Lives
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Master, Slave

pytestmark = pytest.mark.vm

REPEATS = 10
PAUSE = float(os.environ.get("VHOSTPCI_PAUSE", "4"))
"""Seconds for which a VM is paused; longer than each wait for a sign of life."""


@pytest.fixture(scope="module")
def walk(logs: Path) -> Iterator[Lives]:
    """Both VMs for all tests here: each leaves an agent, and packets that cross."""
    with lives.booted(logs / "lives") as both:
        yield both


@pytest.mark.parametrize(
    "event",
    [Master.reboot, power.reset, power.panic, power.kill],
    ids=lambda e: e.__name__,
)
def test_master_begins_again(walk: Lives, event: Callable[[Master], None]) -> None:
    with walk.outage(walk.master) as outage:
        event(walk.master)
        walk.master.configure()
        outage.ends()


def test_master_crashes_and_its_crash_kernel_has_a_network(walk: Lives) -> None:
    crash_kernel.load(walk.master, own=MASTER_ADDRESS, peer=SLAVE_ADDRESS, count=5)
    with walk.outage(walk.master) as outage:
        sent, answered = crash_kernel.crash(walk.master)
        assert sent == answered == 5
        walk.master.configure()
        outage.ends()


def test_master_suspends_to_ram(walk: Lives) -> None:
    with walk.outage(walk.master) as outage:
        power.suspend_to_ram(walk.master, 1)
        outage.ends()


@pytest.mark.parametrize("seconds", [1, PAUSE])
def test_master_is_paused(walk: Lives, seconds: float) -> None:
    with walk.outage(walk.master) as outage:
        power.pause(walk.master, seconds)
        outage.ends()


def test_masters_driver_and_cable_come_and_go(walk: Lives) -> None:
    """Ten times, so that a descriptor that leaks each time is seen."""
    with walk.outage(walk.master) as outage:
        for _ in range(REPEATS):
            walk.rebind_driver()
            walk.set_link(up=False)
            walk.set_link(up=True)
            power.pause(walk.master, 0)
        walk.master.configure()
        outage.ends()


# test_hotplug.py has one that reboots.
@pytest.mark.parametrize("event", [power.reset, power.kill], ids=lambda e: e.__name__)
def test_slave_begins_again(walk: Lives, event: Callable[[Slave], None]) -> None:
    with walk.outage(walk.slave) as outage:
        event(walk.slave)
        walk.serve()
        outage.ends()


def test_slave_suspends_to_ram(walk: Lives) -> None:
    with walk.outage(walk.slave, lasts=True) as outage:
        power.suspend_to_ram(walk.slave, 1)
        outage.ends()


def test_slave_is_paused_ten_times_and_no_packet_is_lost(walk: Lives) -> None:
    with walk.outage(walk.slave, lasts=True) as outage:
        for _ in range(REPEATS):
            power.pause(walk.slave, 0.2)
        outage.ends()


def test_slave_is_paused_for_long(walk: Lives) -> None:
    with walk.outage(walk.slave) as outage:
        power.pause(walk.slave, PAUSE)
        outage.ends()
