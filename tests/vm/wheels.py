# SPDX-License-Identifier: Apache-2.0
"""Our distributions as wheels, built again only when their sources changed.

The VMs and the daemon run what a user would install, not the checkout.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vm import rootfs
from tests.vm.cache import (
    cache_dir,
    digest,
    discard_old,
    fresh,
    key_of,
    one_at_a_time,
)
from tests.vm.debian import PYTHON
from tests.vm.image import CHECKOUT
from tools.wheels import NOT_SOURCE

log = logging.getLogger(__name__)

PROJECTS = ("shared", "host", "guest")


@one_at_a_time()
def guest_wheels() -> list[Path]:
    """The wheels of the slave VM."""
    return [_wheel("shared"), _wheel("guest")]


@one_at_a_time()
def host_packages() -> Path:
    """A directory for PYTHONPATH with the daemon as installed from its wheels.

    Its dependencies come from PyPI, not from the environment of the tests, which may
    have them by chance.
    """
    return _installed("host", [_wheel("shared"), _wheel("host")])


@one_at_a_time()
def guest_packages() -> Path:
    """A directory for PYTHONPATH with the agent as installed from its wheels.

    Without what it needs from PyPI, which Debian has as packages, too.
    """
    return _installed("guest", [_wheel("shared"), _wheel("guest")], "--no-deps")


def _installed(kind: str, wheels: list[Path], *options: str) -> Path:
    """Install wheels into the cache, unless it has them."""
    target = cache_dir() / kind / digest(map(str, wheels))
    if not target.exists():
        log.info("installing the %s's program from its wheels", kind)
        with fresh(target) as path:
            rootfs.pip_install(path, *options, *map(str, wheels))
        discard_old(target.parent.glob("*"), keep=4)
    os.utime(target)  # in use: the last to be discarded
    return target


def _wheel(project: str) -> Path:
    cached = cache_dir() / "wheels"
    with tempfile.TemporaryDirectory() as name:
        # A copy: builds write into their sources, and others build here too.
        copy = Path(name) / project
        shutil.copytree(CHECKOUT / project, copy, ignore=NOT_SOURCE)
        target = cached / f"{project}-{key_of(copy)}"
        if not target.exists():
            log.info("building the wheel of %s/, with setuptools from PyPI", project)
            with fresh(target) as path:
                pip_wheel(copy, path)
            discard_old(cached.glob(f"{project}-*"), keep=4)
    os.utime(target)  # in use: the last to be discarded
    return next(target.glob("*.whl"))


def pip_wheel(source: Path, target: Path) -> None:
    """Build the wheel of a distribution's sources."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(PYTHON), "wheel"),
            *("-qq", "--disable-pip-version-check", "--no-deps"),
            *("-w", str(target), str(source)),
        ],
        check=True,
        timeout=600,
    )
