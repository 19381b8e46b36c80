# SPDX-License-Identifier: Apache-2.0
"""What processes have, to find what they leak."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.descriptors import open_descriptors

MORE_DESCRIPTORS = 2
"""How many more a process may have: a command that is being answered has one."""
MORE_MEMORY = 8 << 10
"""KiB by which a process may grow."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The descriptors and the memory (KiB, without what is shared) of processes."""

    descriptors: Mapping[str, int]
    memory: Mapping[str, int]

    @classmethod
    def of(cls, **pids: int) -> Self:
        """Look at these processes."""
        return cls(
            {name: len(open_descriptors(pid)) for name, pid in pids.items()},
            {name: _anonymous(pid) for name, pid in pids.items()},
        )

    def leaks(self, later: Self) -> list[str]:
        """Return what is more at a later time than may be."""
        found = []
        for what, most in (("descriptors", MORE_DESCRIPTORS), ("memory", MORE_MEMORY)):
            was, now = getattr(self, what), getattr(later, what)
            found += [
                f"{name}: {what} grew from {was[name]} to {now[name]}"
                for name in was
                if now[name] > was[name] + most
            ]
        return found

    def __str__(self) -> str:
        return ", ".join(
            f"{name}: {count} descriptors, {self.memory[name] / 1024:.1f} MiB"
            for name, count in self.descriptors.items()
        )


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise ValueError(f"pid {pid} has no memory")
