# SPDX-License-Identifier: Apache-2.0
"""A copy of this machine's file system, whose changes are thrown away.

    with Machine(tmp_path) as copy:
        copy.run("dkms add kmod")

An overlay over the root directory, in a separate mount namespace: what packages
installed is there, what is written goes to memory.
"""

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.vm.cache import cache_dir

# The cache may be another file system, which the overlay does not show.
MOUNTS = """
mount -t tmpfs vhostpci "$0"
mkdir "$0/upper" "$0/work" "$0/root"
mount -t overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" vhostpci "$0/root"
for name in /dev /proc "$1"; do mount --rbind "$name" "$0/root$name"; done
echo ready
read -r end
"""


class Machine:
    """The copy, for as long as a ``with`` block takes; its root is below ``place``."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # It ends, and the mounts with it, when its input does.
        self._process = self._stack.enter_context(
            subprocess.Popen(
                ["unshare", "--mount", "sh", "-ec", MOUNTS, self._place, cache_dir()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            self._stack.close()
            raise RuntimeError("no overlay over / could be mounted")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, command: str, cwd: Path = Path("/")) -> str:
        """Run shell text; return its output, which is also the text of an error."""
        done = self.attempt(command, cwd)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def attempt(self, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run shell text that may fail."""
        enter = ["nsenter", "--mount", "--root", "--target", str(self._process.pid)]
        inside = ["chroot", f"{self._place}/root", "env", "-C", str(cwd)]
        return subprocess.run(
            [*enter, *inside, "sh", "-ec", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
