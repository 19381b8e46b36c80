# SPDX-License-Identifier: Apache-2.0
"""A process that is watched, and that ends."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.daemon.watched_process import WatchedProcess
from vhostpci_host.device.kept import ProcessState


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def test_end_is_told_once(child: subprocess.Popen[bytes]) -> None:
    loop, ended = ManualLoop(), [0]
    watched = WatchedProcess.of(child.pid, loop, lambda: ended.append(1))
    loop.advance(1.0)
    assert ended == [0]
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    loop.advance(1.0)
    assert ended == [0, 1]
    assert not loop.watched()
    watched.close()


def test_process_that_is_watched_no_more_may_end(
    child: subprocess.Popen[bytes],
) -> None:
    loop = ManualLoop()
    WatchedProcess.of(child.pid, loop, lambda: pytest.fail("told")).close()
    child.kill()
    child.wait()
    loop.advance(1.0)


def test_number_that_another_process_has_now_is_not_taken(
    child: subprocess.Popen[bytes],
) -> None:
    loop = ManualLoop()
    watched = WatchedProcess.of(child.pid, loop, lambda: None)
    state = watched.state
    watched.close()
    WatchedProcess(state, loop, lambda: None).close()
    with pytest.raises(ProcessLookupError, match="has ended"):
        WatchedProcess(ProcessState(state.pid, state.started - 1), loop, lambda: None)
    assert not loop.watched()


@pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**63])
def test_process_that_cannot_be_is_an_error(pid: int) -> None:
    with pytest.raises(OSError, match=r"No such|Invalid|no process"):
        WatchedProcess.of(pid, ManualLoop(), lambda: None)
    with pytest.raises(OSError, match=r"No such|Invalid|no process"):
        WatchedProcess(ProcessState(pid, 1), ManualLoop(), lambda: None)


def test_name_with_spaces_and_parentheses_is_no_obstacle() -> None:
    loop = ManualLoop()
    name = "open('/proc/self/comm', 'w').write(') R 1 (')"
    argv = ["python3", "-c", f"{name}; print(); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as one:
        assert one.stdout is not None
        one.stdout.readline()
        watched = WatchedProcess.of(one.pid, loop, lambda: None)
        assert watched.state.started > 10_000
        watched.close()
        one.communicate(b"\n")
