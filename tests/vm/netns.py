# SPDX-License-Identifier: Apache-2.0
"""A network namespace for a test, which ends with the test run.

It has no name: a process that we start holds it, so that even a killed test run leaves
neither namespace, nor bridge, nor TAP behind.
"""

import subprocess
from typing import Self

HOLDER = [
    *("setpriv", "--pdeathsig", "KILL", "unshare", "--net"),
    *("sh", "-c", "echo ready; exec sleep infinity"),
]


class Namespace:
    """An empty network namespace; commands run in it through :meth:`run`."""

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(
            HOLDER, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._holder.stdout
        if not self._holder.stdout.readline():
            raise PermissionError("cannot make a network namespace; are we root?")
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    @property
    def prefix(self) -> list[str]:
        """The words that run a command in the namespace, if put before it."""
        return ["nsenter", f"--net={self.path}"]

    @property
    def path(self) -> str:
        """The file that setns(2) takes."""
        return f"/proc/{self._holder.pid}/ns/net"

    def run(self, command: str) -> None:
        """Run a command, such as ``ip link add br0 type bridge``."""
        subprocess.run([*self.prefix, *command.split()], check=True, timeout=30)

    def output(self, *command: str) -> str:
        """Run a command; return what it prints."""
        done = subprocess.run(
            [*self.prefix, *command],
            check=True,
            timeout=30,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout
