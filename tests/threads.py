# SPDX-License-Identifier: Apache-2.0
"""The threads of a process, as the kernel lists them.

The kernel removes a thread from its list a moment after the thread was joined, so one
of an earlier test may still be there, with the same name.  Others end at any moment.
"""

from contextlib import suppress
from pathlib import Path

from tests.waiting import eventually


def thread_files(file: str, pid: int | None = None) -> dict[Path, str]:
    """Return the directory in /proc of each thread, and what a file in there says.

    Args:
        file: the file's name.
        pid: the process; this one if not given.
    """
    found = {}
    for task in Path(f"/proc/{pid or 'self'}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found[task] = (task / file).read_text()
    return found


def thread_names(pid: int | None = None) -> dict[Path, str]:
    """Return the directory in /proc of each thread, and the thread's name."""
    return {task: name.strip() for task, name in thread_files("comm", pid).items()}


def thread_statuses(pid: int | None = None) -> dict[Path, dict[str, str]]:
    """Return the directory in /proc of each thread, and the thread's status."""
    return {
        task: dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        for task, text in thread_files("status", pid).items()
    }


def only_thread(name: str, pid: int | None = None) -> Path:
    """Return the directory of the thread of this name, once there is only one."""
    found: list[Path] = []

    def is_alone() -> bool:
        found[:] = [task for task, one in thread_names(pid).items() if one == name]
        return len(found) == 1

    assert eventually(is_alone), f"threads of the name {name}: {found}"
    return found[0]


def is_gone(name: str) -> bool:
    """Wait until no thread of this process has this name; return whether it is so."""
    return eventually(lambda: name not in thread_names().values(), 20)


def processor_time(name: str) -> float:
    """Return for how many seconds the only thread of this name has run."""
    return int((only_thread(name) / "schedstat").read_text().split()[0]) / 1e9
