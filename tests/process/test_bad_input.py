# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong: one clear message, exit status 1 or 2, no files left."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fakes.frontend import Refused
from tests.fakes.netns import private_network
from tests.process.lab import SLAVE_TAP, Lab
from tests.process.program import run

pytestmark = pytest.mark.process


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """A daemon, and no agent: most of the tests start one that ends at once."""
    with private_network(), Lab(directory) as lab:
        lab.start_daemon()
        yield lab


def test_daemon_says_that_a_name_is_in_use(shared: Lab) -> None:
    second = run(*shared.daemon_argv())
    assert second.returncode == 1
    assert "net0" in second.stderr
    assert "in use" in second.stderr
    assert shared.daemon_serves()


def test_daemon_replaces_sockets_that_a_killed_daemon_left(lab: Lab) -> None:
    lab.run_dir.mkdir()
    for name in ("net0.vhost-user", "net0.ivshmem", "net0.control"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(lab.run_dir / name))
    lab.start_daemon()


def test_second_agent_on_a_device_is_refused(shared: Lab) -> None:
    first = shared.start_agent()
    shared.wait_carrier("NO-CARRIER")
    second = run(*shared.agent_argv()[:-1], "vp1")
    assert second.returncode == 1
    assert "another slave is connected" in second.stderr
    assert first.end() == 0


def test_agent_says_that_a_tap_name_is_in_use(shared: Lab) -> None:
    shared.slave.run(f"ip link add {SLAVE_TAP} type veth")
    agent = run(*shared.agent_argv())
    shared.slave.run(f"ip link delete {SLAVE_TAP}")
    assert agent.returncode == 1
    assert SLAVE_TAP in agent.stderr
    assert "--tap" in agent.stderr


def test_agent_says_that_it_waits_for_a_daemons_socket(lab: Lab) -> None:
    """Not in the shared lab: the daemon starts after the agent."""
    agent = lab.start_agent()
    agent.wait_log("net0.ivshmem: No such file")
    lab.start_daemon()
    lab.wait_carrier("NO-CARRIER")


def test_agent_on_the_wrong_socket_says_so(shared: Lab) -> None:
    argv = [word.replace(".ivshmem", ".control") for word in shared.agent_argv()]
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
    shared: Lab, option: str, value: str
) -> None:
    agent = run(*shared.agent_argv(option, value))
    assert agent.returncode == 2
    assert option in agent.stderr
    assert value in agent.stderr


def test_memory_that_is_not_the_arena_is_refused_with_the_right_option(
    shared: Lab,
) -> None:
    with closing(shared.start_master()) as master:
        other = os.memfd_create("other")
        os.ftruncate(other, master.memory.size)
        os.dup2(other, master.memory.files[0].fd)
        os.close(other)
        with pytest.raises(Refused, match="SET_MEM_TABLE"):
            master.load()
        shared.daemon.wait_log("-object memory-backend-file")
    assert shared.daemon_serves()
