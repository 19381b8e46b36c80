# SPDX-License-Identifier: Apache-2.0
"""The threads of this process, as the kernel lists them.

The kernel removes a thread from its list a moment after the thread was joined, so one
of an earlier test may still be there, with the same name.
"""

from contextlib import suppress
from pathlib import Path

from tests.waiting import eventually

TASKS = Path("/proc/self/task")


def thread_names() -> dict[Path, str]:
    """Return the directory in /proc of each thread, and the thread's name."""
    names = {}
    for task in TASKS.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names[task] = (task / "comm").read_text().rstrip("\n")
    return names


def only_thread(name: str) -> Path:
    """Return the directory of the thread of this name, once there is only one."""
    found: list[Path] = []

    def is_alone() -> bool:
        found[:] = [task for task, other in thread_names().items() if other == name]
        return len(found) == 1

    assert eventually(is_alone), f"threads of the name {name}: {found}"
    return found[0]


def is_gone(name: str) -> bool:
    """Return whether no thread has this name, or has it any more after a wait."""
    return eventually(lambda: name not in thread_names().values())


def processor_time(name: str) -> float:
    """Return for how many seconds the only thread of this name has run."""
    return int((only_thread(name) / "schedstat").read_text().split()[0]) / 1e9
