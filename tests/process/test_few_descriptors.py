# SPDX-License-Identifier: Apache-2.0
"""Daemon and agent with few descriptors: they take all they may, or say so."""

import pytest

from tests.process.lab import Lab
from tests.process.program import run

pytestmark = pytest.mark.process


def test_agent_raises_its_soft_limit(lab: Lab) -> None:
    """With 12 descriptors it could not even take the handshake."""
    lab.start_daemon()
    lab.start_server(["prlimit", "--nofile=12:256", *lab.agent_argv()])
    lab.start_master().load()
    lab.wait_carrier("UP")


def test_agent_that_may_have_too_few_descriptors_says_so(lab: Lab) -> None:
    lab.start_daemon()
    done = run("prlimit", "--nofile=12:12", *lab.agent_argv())
    assert done.returncode == 1
    assert "no descriptors are left" in done.stderr
    assert "Traceback" not in done.stderr


def test_agent_waits_for_a_daemon_that_has_no_descriptors_left(lab: Lab) -> None:
    daemon = lab.start_daemon()
    limit(daemon.process.pid, daemon.descriptors() + 2)
    agent = lab.start_agent()
    agent.wait_log("it has no descriptors left")
    limit(daemon.process.pid, 256)
    lab.start_master().load()
    lab.wait_carrier("UP")


def limit(pid: int, soft: int) -> None:
    """Allow a process so many descriptors, of those that its hard limit allows."""
    done = run("prlimit", f"--nofile={soft}:", "--pid", str(pid))
    assert not done.returncode, done.stderr
