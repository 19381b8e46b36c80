# SPDX-License-Identifier: Apache-2.0
"""DPDK in the slave VM works the master's rings; dpdk.py has the drawing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import dmesg, dpdk
from tests.vm.pair import Pair

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def booted(logs: Path) -> Iterator[Pair]:
    """Both VMs, without an agent."""
    with dpdk.booted(logs / "dpdk", module=True) as link:
        yield link


# vfio for BAR 0 and the interrupts, and BAR 2 by sysfs; or all of it by our module.
@pytest.mark.parametrize("bind", ["vfio", "kmod"])
def test_packets_cross_dpdk_and_again_after_deaths(booted: Pair, bind: str) -> None:
    slave = booted.slave
    with dpdk.agent(slave, bind) as first, dpdk.testpmd(slave):
        booted.assert_packets_cross()
        first.send(signal.SIGKILL)
        first.wait(30)
        with dpdk.agent(slave, bind):
            booted.assert_packets_cross()
            booted.master.reload_driver()
            booted.assert_packets_cross()
    dmesg.check(slave)
