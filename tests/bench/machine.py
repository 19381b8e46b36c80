# SPDX-License-Identifier: Apache-2.0
"""The machine that measures: what it is, and whether it is free to measure."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOK = 0.5
BUSY = 0.15
"""Processors in use by others, from which on a figure may be wrong."""


def name() -> str:
    """Say what the machine is."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    virtual = flags is not None and "hypervisor" in flags[1].split()
    what = model[1].strip() if model else platform.machine()
    where = ", in a virtual machine" if virtual else ""
    return f"{what}, {os.cpu_count()} processors{where}"


def commit() -> str:
    """Return the commit that is measured, with "-dirty" if there are changes."""
    done = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def processor_seconds(stat: str) -> float:
    """Return how long the processors have worked, or were taken by a hypervisor.

    Args:
        stat: the text of /proc/stat.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, stat.splitlines()[0].split()[1:9]
    )
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _read_stat() -> str:
    return Path("/proc/stat").read_text()


@dataclass(frozen=True, slots=True)
class Load:
    """What else ran, just before we measured."""

    average: float
    """Of the last minute, as uptime shows it."""
    others: float
    """Processors that were in use while we did nothing."""

    @property
    def busy(self) -> bool:
        """Whether there was too much for good figures."""
        return self.others > BUSY

    @classmethod
    def now(
        cls,
        read: Callable[[], str] = _read_stat,
        sleep: Callable[[float], None] = time.sleep,
    ) -> "Load":
        """Look for half a second, in which the caller does nothing."""
        before = processor_seconds(read())
        sleep(LOOK)
        others = (processor_seconds(read()) - before) / LOOK
        return cls(os.getloadavg()[0], others)

    def __str__(self) -> str:
        return f"load {self.average:.1f}, others use {self.others:.1f} processors"
