# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch with DPDK in the switch VM; openvswitch.py has the drawing."""

import signal
from pathlib import Path

import pytest

from tests.vm import dmesg, openvswitch, switch
from tests.vm.data_planes import VHOST_USER
from tests.vm.show import Progress

pytestmark = [pytest.mark.vm, pytest.mark.long]


def test_masters_come_and_go_and_the_others_lose_nothing_and_all_outlive_deaths(
    logs: Path,
) -> None:
    say, report = Progress(), switch.Report(openvswitch.BIND, VHOST_USER)
    with openvswitch.booted(logs / "openvswitch", say) as (masters, bridge):
        reach = ("a", "b", switch.LATE)
        with openvswitch.agent(masters.vm) as first:
            switch.perform(masters, report, say)
            report.finish(say.seconds())
            assert report.ok, f"{report.text()}\n{first.output()}\n{bridge.said()}"
            say("killing the agent")
            first.send(signal.SIGKILL)
            first.wait(30)
        with openvswitch.agent(masters.vm):
            masters.wait_reachable(*reach)
            say("killing the switch")
            bridge.restart()
            masters.wait_reachable(*reach)
        dmesg.check(masters.vm)
    say("done")
