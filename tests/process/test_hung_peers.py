# SPDX-License-Identifier: Apache-2.0
"""A process that hangs at a socket of the daemon's makes room for its successor."""

import signal
import time

import pytest

from tests.fakes.frontend import Socket
from tests.process.lab import Lab, ip
from tests.process.master import TAP as MASTER_TAP
from tests.process.master import Master
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def test_agent_that_hangs_is_replaced_at_once_and_fenced(lab: Lab) -> None:
    daemon = lab.start_daemon()
    first = lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    lab.ping_from_master()
    first.send(signal.SIGSTOP)
    daemon.wait_log("the agent has said nothing for 0.7 s")
    assert lab.status()["state"] == "agent is silent"
    second = lab.start_agent("--tap", "vp1")
    wait_for(
        lambda: (lab.status()["slave"] or {}).get("pid") == second.process.pid,
        "the second agent has the place of the first",
    )
    assert not second.said("another slave is connected")
    lab.wait_state("running")
    second.wait_log("vp1: carrier on")
    # Without packets: whatever changes then is the work of the first agent.
    lab.run_in_slave("ip", "link", "set", "vp1", "down")
    ip("link", "set", MASTER_TAP, "down")
    wait_for(lambda: not changes(master, 0.7), "no packet is under way")
    first.send(signal.SIGCONT)
    assert changes(master, 0.5) == []
    first.wait_log("trying again every second")
    assert lab.status()["slave"]["pid"] == second.process.pid
    assert not daemon.said("broken")


def changes(master: Master, seconds: float) -> list[tuple[str, int, int]]:
    """Return which bytes of the master's memory change in so many seconds, and how."""
    before = master.memory.read(0, master.memory.size)
    time.sleep(seconds)
    after = master.memory.read(0, master.memory.size)
    if before == after:
        return []
    pairs = enumerate(zip(before, after, strict=True))
    return [(hex(at), old, new) for at, (old, new) in pairs if old != new]


def test_front_end_that_hangs_is_replaced_by_a_real_one(lab: Lab) -> None:
    daemon = lab.start_daemon()
    hung = Socket(lab.run_dir / "net0.vhost-user")
    daemon.wait_log("says nothing: is it a slave's QEMU?")
    lab.wait_state("front-end hangs")
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    hung.close()
