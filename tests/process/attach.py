# SPDX-License-Identifier: Apache-2.0
"""The lab in attach mode: masters that bring their own memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.process.lab import ATTACH, MASTER_ADDRESS, MEMORY, Lab, set_up_master
from tests.process.master import Master, Ram
from tests.process.program import Program
from tests.waiting import wait_for


class AttachLab(Lab):
    """A lab whose masters have the memory that they have."""

    @property
    def socket(self) -> Path:
        """Where a front-end connects."""
        return self.run_dir / "net0.vhost-user"

    def start(self, *, pairs: int = 1) -> tuple[Program, Program]:
        """Start the daemon and the agent, and wait until they know each other."""
        daemon = self.start_daemon(*ATTACH, "--queue-pairs", str(pairs))
        agent = self.start_agent()
        self.wait_carrier("NO-CARRIER")
        return daemon, agent

    @contextmanager
    def attached(self, *sizes: int) -> Iterator[Master]:
        """A master with a memory file of each size, whose driver is loaded."""
        ram = Ram.of_nodes(*(sizes or (MEMORY,)))
        with Master(self.socket, ram) as master:
            set_up_master(MASTER_ADDRESS)
            master.load()
            self.wait_carrier("UP")
            self.wait_rings()
            yield master

    def wait_rings(self) -> None:
        """Wait until the agent runs, and has reported, the rings as they are now."""
        wait_for(self._rings_are_current, self.status)

    def _rings_are_current(self) -> bool:
        status = self.status()
        said = [ring["agent"] for ring in status["rings"]]
        current = all(said) and all(one["current"] for one in said)
        return status["state"] == "running" and current

    def windows(self) -> list[int]:
        """The windows that the master's regions are in."""
        return [region["window"] for region in self.status()["master"]["regions"]]

    def packets(self) -> list[int]:
        """How many packets the agent says that it moved, ring by ring."""
        return [_packets(ring) for ring in self.status()["rings"]]

    def wait_packets(self, count: int, before: list[int] | None = None) -> None:
        """Wait until each ring has moved so many packets, or so many since `before`.

        The counts of a ring go on with the next master.
        """
        before = before or [0] * len(self.packets())
        wait_for(
            lambda: all(
                now >= then + count
                for now, then in zip(self.packets(), before, strict=True)
            ),
            lambda: f"{count} packets in each ring since {before}: {self.packets()}",
        )


def _packets(ring: dict[str, Any]) -> int:
    return int(ring["agent"]["packets"]) if ring["agent"] else 0
