# SPDX-License-Identifier: Apache-2.0
"""A lab in attach mode whose agent hands the rings to another program.

master ── vhostpci-host ── vhostpci-guest, --data-plane vhost-user ── back-end
"""

from pathlib import Path

from tests.process.attach import AttachLab
from tests.process.lab import ATTACH
from tests.process.program import Program
from tests.waiting import wait_for


class BackEndLab(AttachLab):
    """The lab; its agent and the back-end meet at `back_end`.

    Args:
        directory: where everything goes.
        listens: whether the agent listens there, and the back-end connects.
    """

    def __init__(self, directory: Path, *, listens: bool = True) -> None:
        super().__init__(directory)
        self.back_end = directory / "back-end.sock"
        self._plane = f"vhost-user:{self.back_end}{'' if listens else ',server=off'}"

    def agent_argv(self, *options: str) -> list[str]:
        """The command of an agent on the daemon's socket."""
        argv = super().agent_argv()
        return [*argv[: argv.index("--tap")], "--data-plane", self._plane, *options]

    def start_agent(self, *options: str) -> Program:
        """Start the agent."""
        self._agent = self._start("agent", self.agent_argv(*options))
        return self._agent

    def start_both(self, *options: str) -> None:
        """Start the daemon, with these options, and the agent."""
        self.start_daemon(*ATTACH, *options)
        self.start_agent()

    def wait_running(self) -> None:
        """Wait until the back-end has the rings, from the present agent.

        A back-end that has yet to see that an agent has ended goes on with its rings.
        """
        wait_for(self._runs, lambda: f"{self.status()}\n{self.agent.log}")

    def _runs(self) -> bool:
        status = self.status()
        pid = (status["slave"] or {}).get("pid")
        return status["state"] == "running" and pid == self.agent.process.pid

    def wait_withheld(self, feature: str) -> None:
        """Wait until the daemon knows that the back-end lacks a feature."""
        wait_for(
            lambda: feature in self.status()["features"]["withheld"],
            lambda: f"{self.status()}\n{self.agent.log}",
        )
