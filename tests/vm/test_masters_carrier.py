# SPDX-License-Identifier: Apache-2.0
"""The carrier of the master's card is off while no agent serves it.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest
 its carrier       disconnects it             killed, stopped, started
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.program import ask_status
from tests.vm import pair
from tests.vm.pair import MASTER_ADDRESS, Pair
from tests.waiting import wait_for

pytestmark = pytest.mark.vm

OFF = "no agent: the master has no carrier"
GRACE = 5
"""Seconds in which a test sees that an agent is silent, and lets it go on."""


@pytest.fixture(scope="module")
def booted(logs: Path) -> Iterator[Pair]:
    with pair.booted(logs / "carrier", carrier_grace=str(GRACE)) as link:
        link.master.run(f"ip addr add {MASTER_ADDRESS}/24 dev eth0")
        link.master.run("ip link set eth0 up")
        yield link


def wait_packets_cross(link: Pair) -> None:
    """Wait until packets cross; on a loaded machine an agent may be silent before."""
    link.master.configure()
    link.wait_link()


def wait_off(link: Pair) -> None:
    """Wait until the carrier is off, for the daemon and for the guest."""
    link.daemon.wait_state(OFF)
    link.master.wait_until(
        lambda: not link.master.has_carrier("eth0"), lambda: "no carrier of eth0"
    )


def wait_silent(link: Pair) -> None:
    """Wait until the daemon misses the agent's heartbeat."""
    # Within the grace period a loaded machine may start no process that asks.
    daemon = link.daemon
    wait_for(
        lambda: ask_status(daemon.run_dir, daemon.name)["state"] == "agent is silent",
        daemon.status,
    )


def changes(link: Pair) -> str | None:
    return link.master.peek("/sys/class/net/eth0/carrier_changes")


def test_carrier_is_off_until_there_is_an_agent(booted: Pair) -> None:
    """The master boots without one, twice, and waits for nothing."""
    wait_off(booted)
    assert booted.daemon.status()["carrier"]["waits_for"] == booted.master.pid
    # The QEMU tries to connect each second, and says of the first time that it failed.
    booted.master.wait_until(
        lambda: "No such file" in booted.master.qemu_said(), booted.master.qemu_said
    )
    before = booted.master.qemu_said()
    time.sleep(3)
    assert booted.master.qemu_said() == before
    booted.master.reboot()
    assert booted.daemon.status()["state"] == OFF
    with booted.slave.agent("vfio"):
        wait_packets_cross(booted)


def test_carrier_follows_an_agent_that_hangs_or_is_killed(booted: Pair) -> None:
    with booted.slave.agent("vfio") as agent:
        wait_packets_cross(booted)
        before, began = changes(booted), time.monotonic()
        agent.send(signal.SIGSTOP)
        wait_silent(booted)
        agent.send(signal.SIGCONT)
        booted.daemon.wait_state("running")
        # On a loaded machine the signals may have taken longer to reach the agent.
        assert changes(booted) == before or time.monotonic() - began > GRACE
        agent.send(signal.SIGSTOP)
        wait_off(booted)
        agent.send(signal.SIGCONT)
        wait_packets_cross(booted)
        agent.send(signal.SIGKILL)
        wait_off(booted)


def test_carrier_follows_a_slave_vm_that_is_paused(booted: Pair) -> None:
    with booted.slave.agent("vfio"):
        wait_packets_cross(booted)
        booted.slave.qmp("stop")
        wait_off(booted)
        booted.slave.qmp("cont")
        wait_packets_cross(booted)
