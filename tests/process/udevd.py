# SPDX-License-Identifier: Apache-2.0
"""A real systemd-udevd for one network namespace, which changes interfaces late.

It has directories that no other process sees, and one file of rules: the one by which
udev gives interfaces their names and MACs.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.process.program import Program
from tests.waiting import wait_for

UDEVD = Path("/usr/lib/systemd/systemd-udevd")
RULES = Path("/usr/lib/udev/rules.d/80-net-setup-link.rules")
PRELOADED = Path(__file__).parent / "late_udev.c"

# sysfs shows the interfaces of the namespace in which it is mounted.  The kernel sends
# the events of all other devices to every namespace: udevd must not act on those, and
# has no rules for them.
START = """
mount -t sysfs none /sys
mount -t tmpfs none /run
mkdir /run/udev /run/rules.d
cp "$1" /run/rules.d
mount --bind /run/rules.d "$(dirname "$1")"
export LD_PRELOAD="$2"
exec "$3"
"""


class LateUdev:
    """udevd in a network namespace; it waits for `go` before it changes an interface.

    Args:
        directory: for its files.
        prefix: the command that enters the network namespace.
    """

    def __init__(self, directory: Path, prefix: Sequence[str]) -> None:
        self._directory = directory
        shim = _build(directory / "late_udev.so")
        self._program = Program(
            [
                *(*prefix, "env", f"LATE_UDEV_DIR={directory}", "unshare", "--mount"),
                *("sh", "-ec", START, "sh", str(RULES), str(shim), str(UDEVD)),
            ],
            directory / "udevd.log",
        )
        control = Path(f"/proc/{self._program.process.pid}/root/run/udev/control")
        wait_for(lambda: self._ended or control.exists(), "udevd is ready")
        assert not self._ended, self._program.log

    @property
    def _ended(self) -> bool:
        return self._program.process.poll() is not None

    def wait_for_change(self) -> None:
        """Wait until it has decided to change an interface."""
        waits = self._directory / "waits"
        wait_for(waits.exists, lambda: f"udevd waits\n{self._program.log}")

    def go(self) -> None:
        """Let it change the interface."""
        (self._directory / "go").touch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()


def _build(library: Path) -> Path:
    """Build what is preloaded into udevd; skip the test if a program is missing."""
    compiler = shutil.which("gcc")
    if not compiler or not UDEVD.exists():
        pytest.skip("gcc or udev: not installed")
    warnings = ("-Wall", "-Wextra", "-Werror")
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-D_GNU_SOURCE", *warnings),
            *(str(PRELOADED), "-o", str(library)),
        ],
        check=True,
    )
    return library
