# SPDX-License-Identifier: Apache-2.0
"""The master's card has no carrier while there is no agent: nothing answers it."""

import os
import signal
from pathlib import Path

import pytest

from tests.process.kept import replace
from tests.process.lab import Lab
from tests.waiting import wait_for

pytestmark = pytest.mark.process

OFF = "no agent: the master has no carrier"


def test_carrier_is_off_until_there_is_an_agent(
    lab: Lab, request: pytest.FixtureRequest
) -> None:
    """It stays off when the daemon is killed, and packets cross with the next agent."""
    daemon = lab.start_daemon("--carrier-grace", "1")
    agent = lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    # Its command line says nothing, so the daemon has to see that it does.
    comm = Path(f"/proc/{os.getpid()}/comm")
    name = comm.read_text()
    comm.write_text("qemu-test")
    request.addfinalizer(lambda: comm.write_text(name))
    master.come_back()
    lab.wait_state("running")
    agent.end(signal.SIGKILL)
    lab.wait_state(OFF)
    socket = lab.run_dir / "net0.vhost-user"
    assert not socket.exists()
    daemon.wait_log("dropped: there has been no agent for 1 s")
    replace(lab)
    lab.wait_state(OFF)
    assert not socket.exists()
    lab.start_agent()
    wait_for(socket.exists, "the socket")
    master.come_back()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    assert lab.ping_from_slave() == 5
    assert daemon.end() == 0
