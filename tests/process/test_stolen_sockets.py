# SPDX-License-Identifier: Apache-2.0
"""Sockets that another process takes while an agent or a master is gone as well."""

import os
import signal

import pytest

from tests.fakes.thief import steal
from tests.process.lab import Lab
from tests.waiting import PROCESS_TIMEOUT, wait_for

pytestmark = pytest.mark.process


def start(lab: Lab) -> None:
    lab.start_daemon()
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")


def works(lab: Lab) -> bool:
    """Whether packets cross both ways; the first may be lost on the way back up."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a ping from the master comes back")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a ping from the slave comes back")
    return True


def test_agent_that_follows_a_dead_one_finds_a_socket_that_was_stolen(
    lab: Lab,
) -> None:
    start(lab)
    path = lab.run_dir / "net0.ivshmem"
    with steal(path):
        lab.agent.end(signal.SIGKILL)
        lab.daemon.wait_log(f"{path} was replaced by pid {os.getpid()}")
        lab.daemon.wait_log("slave disconnected")
        lab.start_agent()
        assert works(lab)
    assert path.is_socket()


def test_agent_that_is_connected_to_a_thief_finds_the_daemon_later(lab: Lab) -> None:
    """The thief says nothing, and ends; the daemon has the path again by then."""
    start(lab)
    path = lab.run_dir / "net0.ivshmem"
    lab.agent.end(signal.SIGKILL)
    lab.daemon.wait_log("slave disconnected")
    lab.daemon.send(
        signal.SIGSTOP
    )  # it would have the path back before the agent comes
    with steal(path) as thief:
        thief.settimeout(PROCESS_TIMEOUT)
        agent = lab.start_agent()
        stolen, _ = thief.accept()
        lab.daemon.send(signal.SIGCONT)
        lab.daemon.wait_log(f"{path} was replaced by pid {os.getpid()}")
        stolen.close()
    agent.wait_log("trying again every second")
    assert works(lab)


def test_master_that_reconnects_and_status_find_sockets_that_were_stolen(
    lab: Lab,
) -> None:
    start(lab)
    paths = [lab.run_dir / f"net0.{kind}" for kind in ("vhost-user", "control")]
    thieves = [steal(path) for path in paths]
    lab.agent.end(signal.SIGKILL)
    for path in paths:
        lab.daemon.wait_log(f"{path} was replaced by pid {os.getpid()}")
    lab.start_agent()
    lab.master.reconnect()
    lab.master.load()
    assert works(lab)
    lab.wait_state("running")
    for thief in thieves:
        thief.close()
    assert lab.daemon.end() == 0
    assert lab.files() == [lab.arena.name]
