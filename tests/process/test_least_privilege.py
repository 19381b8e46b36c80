# SPDX-License-Identifier: Apache-2.0
"""What an agent may do while it serves; tests/vm has the same for a slave VM."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.lab import SLAVE_TAP, Lab
from tests.process.program import run
from tests.processes import children
from tests.threads import thread_statuses
from tests.waiting import wait_for

pytestmark = pytest.mark.process


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """A daemon, an agent and a master whose driver is loaded."""
    with Lab(directory) as lab:
        lab.start_daemon()
        lab.start_agent()
        lab.start_master().load()
        lab.wait_carrier("UP")
        yield lab


def status(path: Path) -> dict[str, str]:
    lines = (path / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def helpers(lab: Lab) -> list[int]:
    """The PIDs of the agent's helpers."""
    return children(lab.agent.process.pid)


def check_threads(lab: Lab) -> None:
    """Check that no thread of the agent may do anything that another user may not."""
    threads = thread_statuses(lab.agent.process.pid).values()
    assert len(threads) > 1
    for thread in threads:
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert thread[name] == "0" * 16, (thread["Name"], name)
        assert thread["NoNewPrivs"] == "1"


def test_serving_agent_has_no_capability_in_any_thread(shared: Lab) -> None:
    check_threads(shared)


def test_log_that_began_before_has_no_capability_either(lab: Lab) -> None:
    """Making a bridge is logged, by a thread, while the agent may still make one."""
    lab.start_daemon()
    agent = lab.start_agent_by(lab.agent_argv("--bridge", "br0"))
    agent.wait_log("TAP ")
    assert agent.said("made bridge br0")
    check_threads(lab)


def test_only_helper_of_an_agent_with_a_socket_makes_taps(shared: Lab) -> None:
    (helper,) = helpers(shared)
    assert status(Path(f"/proc/{helper}"))["Name"] == "vhostpci-tap"


def test_status_says_what_the_agent_may_do(shared: Lab) -> None:
    command = (sys.executable, "-m", "vhostpci_guest", "status")
    links: list[dict[str, Any]] = json.loads(run(*command, "-j").stdout)
    (link,) = [link for link in links if link["pid"] == shared.agent.process.pid]
    # The owner of the daemon's socket: the agent must be able to connect again.
    assert (link["uid"], link["capabilities"]) == (os.geteuid(), [])
    assert f"user {os.geteuid()} with no capability" in run(*command).stdout


def test_agent_goes_on_without_its_helper_and_ends_in_order(lab: Lab) -> None:
    lab.start_daemon()
    agent = lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    (helper,) = helpers(lab)
    os.kill(helper, signal.SIGKILL)
    assert lab.ping_from_master() == 5
    assert agent.end() == 0
    assert lab.carrier() is None
    assert "Traceback" not in agent.log


def test_killed_agent_leaves_no_helper_and_its_tap_to_the_next(lab: Lab) -> None:
    lab.start_daemon()
    agent = lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    (helper,) = helpers(lab)
    agent.end(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{helper}").exists(), "the helper ends")
    lab.run_in_slave("ip", "addr", "add", "10.9.7.7/24", "dev", SLAVE_TAP)
    lab.start_agent()
    lab.wait_carrier("UP")
    assert "10.9.7.7" in lab.run_in_slave("ip", "addr", "show", SLAVE_TAP).stdout
    assert lab.ping_from_master() == 5
