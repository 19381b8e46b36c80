# SPDX-License-Identifier: Apache-2.0
"""A tox plugin: environments with the same ``env_dir`` share what is installed there.

tox writes the name of an environment into its directory and, where it finds another
name, removes the directory and installs everything again ("env type changed").  With
``runner = shared-virtualenv`` the name written is that of the directory.  All else that
tox compares (interpreter, deps, dependency groups) it still compares, so environments
that share a directory must install the same packages.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class SharedInfo(Info):
    """What tox remembers of an environment, under the name of its directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._directory = path.name

    @contextmanager
    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> Generator[tuple[bool, Any], None, None]:
        """Compare as tox does, but do not tell environments apart by their names."""
        if section == ToxEnv.__name__:
            value = {**value, "name": self._directory}
        with super().compare(value, section, sub_section) as found:
            yield found


class SharedVirtualEnvRunner(VirtualEnvRunner):
    """Runs commands in a virtual environment that other environments use too."""

    @staticmethod
    def id() -> str:
        """Return what ``runner =`` in tox.ini calls it."""
        return "shared-virtualenv"

    @property
    def cache(self) -> Info:
        """What tox remembers of the environment's last set-up."""
        return SharedInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Make ``runner = shared-virtualenv`` known to tox."""
    register.add_run_env(SharedVirtualEnvRunner)
