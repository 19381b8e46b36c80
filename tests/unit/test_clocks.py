# SPDX-License-Identifier: Apache-2.0
"""A clock that is set, or jumps, disturbs no daemon and no agent.

They measure time by monotonic clocks, which cannot be set.  `daemon/directories.py`
compares the times of directories with the clock that these are from; its tests let
that clock jump.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTABLE = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"}
"""Functions of `time` that look at the clock that can be set."""
FOR_A_REASON = {
    "directories.py": "compares it with the times of directories",
    "state_clock.py": "tells people since when a device is in its state",
    "cleared.py": "tells people since when counters count",
    "stats.py": "tells people since when counters count",
    "print_stats.py": "tells people since when counters count",
    "vms.py": "tells people when a VM was started",
    "print_status.py": "tells people for how long",
    "log_options.py": "writes the time of day into each line of JSON",
    "monitor.py": "tells people when something happened",
    "pcap.py": "a capture has the time of day of each packet",
    "conversation.py": "tells people when a message came",
    "trace.py": "prints that time",
    "log_line.py": "writes the time of day into a line of the log",
}


def uses_settable_clock(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "time" and node.attr in SETTABLE:
                yield f"time.{node.attr}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names}
            module = getattr(node, "module", None)
            of_time = module == "time" and names & SETTABLE
            if of_time or "datetime" in names | {module}:
                yield "an import"


def test_no_python_looks_at_a_clock_that_can_be_set() -> None:
    found = {}
    for part in ("host/src", "guest/src", "shared/src"):
        for path in (ROOT / part).rglob("*.py"):
            if uses := [*uses_settable_clock(ast.parse(path.read_text()))]:
                found[path.name] = uses
    assert found.keys() == FOR_A_REASON.keys(), found


C_FOR_A_REASON = {
    "capture.c": "a capture has the time of day of each packet",
    "ring_api.h": "says so of a capture",
}


def test_no_c_looks_at_a_clock_that_can_be_set() -> None:
    settable = re.compile(
        r"\b(CLOCK_REALTIME|gettimeofday|time\s*\(\s*(NULL|0|&)"
        r"|pthread_mutex_timedlock|sem_timedwait)"
    )
    sources = [*(ROOT / "guest/ring").glob("*.[ch]"), *(ROOT / "shared").glob("*/*.c")]
    found = [path.name for path in sources if settable.search(path.read_text())]
    assert len(sources) > 20
    assert set(found) == C_FOR_A_REASON.keys()
    for path in sources:
        # By itself, this function takes times of the clock that can be set.
        if "pthread_cond_timedwait" in (text := path.read_text()):
            assert "pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)" in text, path
