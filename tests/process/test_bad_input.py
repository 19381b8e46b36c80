# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong: one clear message, exit status 1 or 2, nothing left."""

import os
import socket

import pytest

from tests.fakes.frontend import Refused
from tests.process.lab import SLAVE_TAP, Lab
from tests.process.program import run

pytestmark = pytest.mark.process


def test_daemon_says_that_a_name_is_in_use(lab: Lab) -> None:
    lab.start_daemon()
    second = run(*lab.daemon_argv())
    assert second.returncode == 1
    assert "net0" in second.stderr
    assert "in use" in second.stderr
    assert lab.daemon_serves()


def test_stale_sockets_are_no_obstacle(lab: Lab) -> None:
    lab.run_dir.mkdir()
    for name in ("net0.vhost-user", "net0.ivshmem", "net0.control"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(lab.run_dir / name))
    lab.start_daemon()


def test_second_agent_on_a_device_is_refused(lab: Lab) -> None:
    lab.start_daemon()
    first = lab.start_agent()
    lab.wait_carrier("NO-CARRIER")
    second = run(*lab.agent_argv()[:-1], "vp1")
    assert second.returncode == 1
    assert "another slave is connected" in second.stderr
    assert first.process.poll() is None


def test_agent_says_that_a_tap_name_is_in_use(lab: Lab) -> None:
    lab.start_daemon()
    lab.run_in_slave("ip", "link", "add", SLAVE_TAP, "type", "veth")
    agent = run(*lab.agent_argv())
    assert agent.returncode == 1
    assert SLAVE_TAP in agent.stderr
    assert "--tap" in agent.stderr


def test_agent_says_that_it_waits_for_a_socket_that_nobody_serves(lab: Lab) -> None:
    agent = lab.start_agent()
    agent.wait_log("net0.ivshmem: No such file")
    lab.start_daemon()
    lab.wait_carrier("NO-CARRIER")


def test_agent_on_the_wrong_socket_says_so(lab: Lab) -> None:
    lab.start_daemon()
    argv = [word.replace(".ivshmem", ".control") for word in lab.agent_argv()]
    agent = run(*argv)
    assert agent.returncode == 1
    assert "net0.control" in agent.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--address", "10.9.0.2/33"),
        ("--mac", "ff:ff:ff:ff:ff:ff"),
        ("--mtu", "12"),
        ("--tap", "a/b"),
    ],
)
def test_agent_names_the_option_that_is_wrong(
    lab: Lab, option: str, value: str
) -> None:
    agent = run(*lab.agent_argv(option, value))
    assert agent.returncode == 2
    assert option in agent.stderr
    assert value in agent.stderr


def test_memory_that_is_not_the_arena_is_refused_with_the_mend(lab: Lab) -> None:
    daemon = lab.start_daemon()
    master = lab.start_master()
    other = os.memfd_create("other")
    os.ftruncate(other, master.memory.size)
    os.dup2(other, master.memory.files[0].fd)
    os.close(other)
    with pytest.raises(Refused, match="SET_MEM_TABLE"):
        master.load()
    daemon.wait_log("-object memory-backend-file")
    assert lab.daemon_serves()
