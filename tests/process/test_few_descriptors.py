# SPDX-License-Identifier: Apache-2.0
"""Daemon and agent with few descriptors: they take all they may, or say so."""

import sys

import pytest

from tests.process.lab import SLAVE_TAP, Lab
from tests.process.program import run
from tests.waiting import wait_for, when_still

pytestmark = pytest.mark.process

STILL = 0.2
"""Seconds in which what serves a command has closed its connection."""


def test_agent_raises_its_soft_limit(lab: Lab) -> None:
    """With 12 descriptors it could not even take the handshake."""
    lab.start_daemon()
    lab.start_server(["prlimit", "--nofile=12:256", *lab.agent_argv()])
    lab.start_master().load()
    lab.wait_carrier("UP")


def test_agent_that_may_have_too_few_descriptors_says_so(lab: Lab) -> None:
    """With nine it has room for no daemon; one that has begun to serve would go on."""
    lab.start_daemon()
    done = run("prlimit", "--nofile=9:9", *lab.agent_argv())
    assert done.returncode == 1
    assert "no descriptors are left" in done.stderr
    assert "Traceback" not in done.stderr


def test_agent_waits_for_a_daemon_that_has_no_descriptors_left(lab: Lab) -> None:
    daemon = lab.start_daemon()
    limit(daemon.serving, when_still(daemon.descriptors, STILL) + 2)
    agent = lab.start_agent()
    agent.wait_log("it has no descriptors left")
    limit(daemon.serving, 256)
    lab.start_master().load()
    lab.wait_carrier("UP")


def test_agent_without_descriptors_goes_on_and_answers_when_it_has_some(
    lab: Lab,
) -> None:
    """A question for its status needs one; it must not end an agent that serves."""
    lab.start_daemon()
    agent = lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    pid = agent.process.pid
    limit(pid, when_still(agent.descriptors, STILL))
    status = (sys.executable, "-m", "vhostpci_guest", "status")
    unanswered = run(*status)
    assert unanswered.returncode == 1
    assert "does not answer within" in unanswered.stderr
    agent.wait_log("no descriptors are left, of the ")
    assert lab.ping_from_master() == 5
    limit(pid, 256)
    wait_for(lambda: SLAVE_TAP in run(*status).stdout, lambda: run(*status).stderr)
    assert agent.process.poll() is None


def limit(pid: int, soft: int) -> None:
    """Allow a process so many descriptors, of those that its hard limit allows."""
    done = run("prlimit", f"--nofile={soft}:", "--pid", str(pid))
    assert not done.returncode, done.stderr
