# SPDX-License-Identifier: Apache-2.0
"""A slave that is a process on the hypervisor: the agent in a network namespace.

master VM ──vhost-user── vhostpci-host ──ivshmem── vhostpci-guest --socket ── vp0
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.channel import GuestError
from tests.vm.daemon import Daemon
from tests.vm.harness import DIE_WITH_US, Result
from tests.vm.netns import Namespace
from tests.vm.pair import LINK_TIMEOUT, SLAVE_ADDRESS, TAP
from tests.waiting import PROCESS_TIMEOUT, wait_for


class Process:
    """The agent as a process, and a shell in its network namespace."""

    name = "slave process"

    def __init__(self, namespace: Namespace, log: Path, pid: int) -> None:
        self.pid = pid
        """The agent's process."""
        self._namespace = namespace
        self._log = log

    def run(self, command: str, *, timeout: float = 30, check: bool = True) -> Result:
        """Run shell text in its network namespace, to its end."""
        done = subprocess.run(
            [*self._namespace.prefix, "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise GuestError(f"{self.name}: {command}: {done.stdout}{done.stderr}")
        return Result(done.returncode, done.stdout, done.stderr)

    def wait_tap(self) -> None:
        """Wait until the agent's TAP has its address."""
        wait_for(
            lambda: (
                not self.run(
                    f"ip addr show {TAP} | grep -q {SLAVE_ADDRESS}", check=False
                ).rc
            ),
            lambda: f"{self.name} has {TAP}; it has written:\n{self.output()}",
            LINK_TIMEOUT,
        )

    def output(self) -> str:
        """Return what the agent has written so far."""
        return self._log.read_text(errors="backslashreplace")


@contextmanager
def serving(daemon: Daemon, log: Path) -> Iterator[Process]:
    """Run the agent for a device while the block runs."""
    with Namespace() as namespace, log.open("ab") as output:
        agent = subprocess.Popen(
            [
                *(*DIE_WITH_US, *namespace.prefix, sys.executable),
                *("-m", "vhostpci_guest", "run", "--tap", TAP),
                *("--socket", str(daemon.run_dir / f"{daemon.name}.ivshmem")),
                *("--address", f"{SLAVE_ADDRESS}/24"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield Process(namespace, log, agent.pid)
        finally:
            agent.terminate()
            agent.wait(PROCESS_TIMEOUT)
