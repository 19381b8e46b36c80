# SPDX-License-Identifier: Apache-2.0
"""Programs that the daemon runs: as its children, and by the process that runs them."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.processes import stop
from tests.waiting import TIMEOUT, until, wait_for
from vhostpci_host.hotplug import programs as programs_module
from vhostpci_host.hotplug.programs import Children, Done, Programs, Runner

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture(params=["children", "runner"])
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    """Both ways of running a program."""
    if request.param == "children":
        yield Children()
        return
    with closing(Runner()) as runner:
        yield runner


def shell(text: str, *fds: int, programs: Programs) -> Coroutine[None, None, Done]:
    return programs.run(["sh", "-c", text], {**ENV, "WORD": "a b"}, fds)


def test_output_and_status_of_a_program_come_back(programs: Programs) -> None:
    text = 'echo "$WORD"; echo oops >&2; cat; exit 3'
    done = asyncio.run(shell(text, programs=programs))
    assert done == Done(3, b"a b\n", b"oops\n")


def test_signal_that_ended_a_program_is_a_negative_status(programs: Programs) -> None:
    done = asyncio.run(shell("kill -9 $$", programs=programs))
    assert done.status == -signal.SIGKILL


def test_much_output_comes_back_whole(programs: Programs) -> None:
    done = asyncio.run(shell("seq 100000; seq 100000 >&2", programs=programs))
    assert done.out == done.err
    assert len(done.out.splitlines()) == 100000


def test_program_inherits_descriptors_under_their_numbers(programs: Programs) -> None:
    """Also under numbers that another descriptor has on its way there."""
    made = [os.memfd_create(f"file{number}") for number in range(6)]
    for place, fd in enumerate(made):
        os.write(fd, f"{place} ".encode())
    text = "; ".join(f"cat /proc/self/fd/{fd}" for fd in made[:4])
    try:
        done = asyncio.run(shell(text, *made[3::-1], programs=programs))
        assert done == Done(0, b"0 1 2 3 ", b"")
        missing = asyncio.run(shell(f"true <&{made[4]}", programs=programs))
        assert missing.status
    finally:
        for fd in made:
            os.close(fd)


def test_program_that_is_not_there_is_an_error(programs: Programs) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(programs.run(["/no/such/program"], ENV, []))


def test_program_is_killed_when_its_caller_is_cancelled(
    programs: Programs, tmp_path: Path
) -> None:
    note = tmp_path / "pid"

    async def run() -> None:
        text = f"echo $$ > {note}; exec sleep 60"
        task = asyncio.create_task(shell(text, programs=programs))
        await until(lambda: note.exists() and note.read_text() != "")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    wait_gone(int(note.read_text()))


def test_many_programs_run_at_a_time(programs: Programs) -> None:
    async def run() -> list[Done]:
        texts = [f"sleep 0.1; exit {number}" for number in range(10)]
        return await asyncio.gather(*(shell(text, programs=programs) for text in texts))

    assert [done.status for done in asyncio.run(run())] == [*range(10)]


def test_runner_ends_with_the_daemon_and_so_does_what_it_runs(tmp_path: Path) -> None:
    """The daemon may be killed: then nothing of it says so but its sockets."""
    note = tmp_path / "pid"
    code = f"""
import asyncio
from vhostpci_host.hotplug.programs import Runner
async def run():
    text = "echo $PPID $$ > {note}; exec sleep 60"
    await Runner().run(["sh", "-c", text], {ENV!r}, [])
asyncio.run(run())
"""
    pid = os.spawnve(
        os.P_NOWAIT, sys.executable, [sys.executable, "-c", code], environ()
    )
    wait_for(lambda: note.exists() and note.read_text() != "", "it runs")
    runner, program = map(int, note.read_text().split())
    os.kill(runner, signal.SIGTERM)  # as a service manager does, to all processes
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_gone(program)
    wait_gone(runner)


def test_runner_that_has_ended_is_an_error() -> None:
    with closing(Runner()) as runner:
        with pytest.raises(ConnectionAbortedError, match="has ended"):
            asyncio.run(shell("kill -9 $PPID", programs=runner))
        # The second one while the kernel is about to close what the runner had open.
        with pytest.raises((BrokenPipeError, ConnectionAbortedError)):
            asyncio.run(shell("true", programs=runner))


def test_runner_that_needs_long_to_end_is_not_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The filter of system calls would kill the daemon for that signal."""
    monkeypatch.setattr(programs_module, "LAST", 0.01)
    runner = Runner()
    process = runner._process
    stop(process.pid)
    runner.close()
    assert f"the process that runs virsh (pid {process.pid}) ends later" in caplog.text
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(TIMEOUT) == 0


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def wait_gone(pid: int) -> None:
    wait_for(lambda: not runs(pid), f"process {pid} has ended", TIMEOUT)


def runs(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to look does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
