# SPDX-License-Identifier: Apache-2.0
"""A daemon of a user without any privilege, beside an agent and a master of root's."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.process.lab import Lab
from tests.vm.debian import PYTHON

UID = 61208
"""No user has it here: systemd gives numbers from 61184 on to services of a moment."""

UNPRIVILEGED = [
    *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
]


class OwnUserLab(Lab):
    """A lab whose daemon is neither root nor the user of master and slave.

    Args:
        directory: for its logs.
        packages: has the daemon, as installed.
    """

    def __init__(self, directory: Path, packages: Path) -> None:
        super().__init__(directory)
        # pytest's directories, and perhaps the checkout, are for root alone.
        place = TemporaryDirectory(prefix="vhostpci-")
        self._place = Path(self._stack.enter_context(place))
        self._place.chmod(0o755)
        shutil.copytree(packages, self._place / "packages")
        self.run_dir = self._place / "run"
        self.run_dir.mkdir()
        for path in (self.run_dir, self.memory_dir):
            path.chmod(0o755)
            os.chown(path, UID, UID)

    def daemon_argv(self, *options: str, name: str = "net0") -> list[str]:
        """The command of a daemon that serves `name`."""
        _, *words = super().daemon_argv(*options, name=name)
        packages = f"PYTHONPATH={self._place / 'packages'}"
        return [*UNPRIVILEGED, "env", "-C", "/", packages, str(PYTHON), *words]
