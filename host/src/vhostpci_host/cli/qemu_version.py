# SPDX-License-Identifier: Apache-2.0
"""Find out which QEMU will run a VM: some arguments depend on its version."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..config.confined_layout import Machine
from ..errors import HostError

PROGRAM = "qemu-system-x86_64"
PROGRAMS = {Machine.Q35: PROGRAM, Machine.VIRT: "qemu-system-aarch64"}
"""The QEMU that has a machine."""

_ANSWER_TIME = 20.0
"""Seconds that `PATH -version` may take."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version of QEMU; later ones are greater."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


RECONNECT_MS = Version(9, 2)
"""The first with `reconnect-ms=`; `reconnect=` is deprecated there, and gone in 11."""
IN_ORDER = Version(9, 1)
"""The first whose virtio-net card has the property `in_order`, which is off there."""
CONFINED = Version(7, 2)
"""The first that a confined master was tried with."""
TCG_MSIX = Version(8, 0)
"""The first whose vhost-user card may have MSI-X without KVM."""

ASSUMED = Version(10, 0)
"""The version where no QEMU can be asked: that of Debian's present stable release."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """The QEMU that runs a VM."""

    version: Version
    program: Path | None
    """None: there was none to ask, and the version is assumed."""
    usual: str = PROGRAM
    """The name by which it was looked for, if the user named none."""

    def __str__(self) -> str:
        """Return the line that tells a user which version the arguments are for."""
        if self.program is None:
            return (
                f"no {self.usual} is in PATH: version {self.version} is assumed "
                "(--qemu)"
            )
        return f"{self.program} is QEMU {self.version}"


def find(name: str | None, machine: Machine = Machine.Q35) -> Qemu:
    """Ask the QEMU that will be used for its version.

    Args:
        name: the program, or its path; None for the one that has the machine.
        machine: QEMU's machine.

    Raises:
        HostError: it is not there, or does not say that it is a QEMU.
    """
    usual = PROGRAMS[machine]
    program = shutil.which(name or usual)
    if program is not None:
        return Qemu(ask(program), Path(program).absolute())
    if name is None:
        return Qemu(ASSUMED, None, usual)
    raise HostError(
        f"--qemu {name}: there is no such program; give its path", code="H016"
    )


def ask(program: str) -> Version:
    """Run `PROGRAM -version`; return what it says.

    Raises:
        HostError: it cannot be run, or does not say that it is a QEMU.
    """
    command = f"{program} -version"
    try:
        done = subprocess.run(
            [program, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=_ANSWER_TIME,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            f"{command}: {error}; --qemu names the QEMU to ask", code="H017"
        ) from error
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)", done.stdout)
    if done.returncode or found is None:
        said = (done.stdout + done.stderr).strip()[:200]
        raise HostError(
            f"{command}: exit status {done.returncode}, {said!r}; a QEMU says `QEMU "
            "emulator version ...`: --qemu names the QEMU to ask",
            code="H018",
        )
    return Version(int(found[1]), int(found[2]))
