# SPDX-License-Identifier: Apache-2.0
"""A healthy hypervisor on which a test seeds a fault for `vhostpci-host doctor`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.fakes.machine import FakeMachine
from tests.unit.host.doctor.healthy import SAFE_MASTER, healthy
from vhostpci_host.doctor.hypervisor import Hypervisor


class Seeded:
    """A healthy hypervisor, with what a seed changes."""

    def __init__(self) -> None:
        self.host = healthy()
        assert isinstance(self.host.machine, FakeMachine)
        self.machine = self.host.machine
        self.web, self.db, self.safe = self.host.devices

    def change(self, path: str, **values: Any) -> None:
        """Change what lies at a path."""
        self.machine.infos[path] = replace(self.machine.info(path), **values)

    def line(self, pid: int, old: str, new: str) -> None:
        """Change a QEMU's command line, of which spaces part the words."""
        path = f"/proc/{pid}/cmdline"
        text = self.machine.files[path]
        old = old.replace(" ", "\0")
        assert old in text
        self.machine.files[path] = text.replace(old, new.replace(" ", "\0"))

    def kernel_word(self, old: str, new: str) -> None:
        """Change a word of the confined master's kernel."""
        path = f"/proc/{SAFE_MASTER}/cmdline"
        text = self.machine.files[path]
        assert old in text.replace("\0", " ").split(" ")
        self.machine.files[path] = text.replace(old, new)

    def append(self, pid: int, *words: str) -> None:
        """Give a QEMU more arguments."""
        self.machine.files[f"/proc/{pid}/cmdline"] += "\0".join([*words, ""])


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and the check that must name it."""

    name: str
    check: str
    seed: Callable[[Seeded], Hypervisor | None]
    """Changes the hypervisor, or returns another."""
    also: str = ""
    """Another check that complains, since the fault cannot be without its reason."""
