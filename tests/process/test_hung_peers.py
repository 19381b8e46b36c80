# SPDX-License-Identifier: Apache-2.0
"""A process that hangs at a socket of the daemon's makes room for its successor."""

import signal

import pytest

from tests.fakes.frontend import Socket
from tests.process.lab import Lab
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def test_agent_that_hangs_is_replaced_by_the_next_one(lab: Lab) -> None:
    lab.start_daemon()
    first = lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    first.send(signal.SIGSTOP)
    second = lab.start_agent("--tap", "vp1")
    second.wait_log("another slave is connected")
    wait_for(
        lambda: (lab.status()["slave"] or {}).get("pid") == second.process.pid,
        "the second agent has the place of the first",
    )
    first.end(signal.SIGKILL)


def test_front_end_that_hangs_is_replaced_by_a_real_one(lab: Lab) -> None:
    daemon = lab.start_daemon()
    hung = Socket(lab.run_dir / "net0.vhost-user")
    daemon.wait_log("says nothing: is it a slave's QEMU?")
    lab.wait_state("front-end hangs")
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    hung.close()
