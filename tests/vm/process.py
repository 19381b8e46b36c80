# SPDX-License-Identifier: Apache-2.0
"""A slave that is a process on the hypervisor: the agent in a network namespace.

master VM ──vhost-user── vhostpci-host ──ivshmem── vhostpci-guest --socket ── vp0
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.channel import GuestError
from tests.vm.daemon import Daemon
from tests.vm.harness import DIE_WITH_US, Result
from tests.vm.netns import Namespace
from tests.vm.pair import LINK_TIMEOUT, SLAVE_ADDRESS, TAP


class Process:
    """The agent, and commands beside it."""

    name = "slave process"

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

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
        """Wait until its TAP has the address."""
        deadline = time.monotonic() + LINK_TIMEOUT
        while self.run(f"ip addr show {TAP} | grep -q {SLAVE_ADDRESS}", check=False).rc:
            if time.monotonic() > deadline:
                raise GuestError(f"{self.name} has no {TAP}")
            time.sleep(0.1)


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
            yield Process(namespace)
        finally:
            agent.terminate()
            agent.wait(15)
