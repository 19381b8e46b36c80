# SPDX-License-Identifier: Apache-2.0
"""``tox -e qemus``: all VM tests and both demos, with each QEMU that we support.

    python -m tests.vm.each_qemu [--only VERSION] [PYTEST-ARGUMENT...]

Exit status 0 if all went well with each of them.
"""

import argparse
import os
import subprocess
import sys

from tests.vm import qemu, qemus
from tests.vm.kernels import is_of
from tests.vm.qemus import Qemu

# libvirt is this machine's, and one that is older than QEMU gives it arguments that it
# refuses (libvirt 9.0 gives QEMU 11 `reconnect`).
PYTEST = (
    *("-m", "pytest", "-n", "3", "--dist", "loadfile", "--durations=15"),
    *("tests/vm", "tests/assumptions", "-m", "vm and not libvirt"),
)
DEMO = ("-m", "tests.vm.demo")


def main() -> int:
    """Walk the versions; return the exit status."""
    parser = argparse.ArgumentParser(prog="tox -e qemus --")
    parser.add_argument("--only", choices=qemus.SUPPORTED, help="only this version")
    arguments, more = parser.parse_known_args()
    chosen = [qemus.SUPPORTED[arguments.only]] if arguments.only else ALL
    failures = [failure for one in chosen for failure in _run_all(one, more)]
    for failure in failures:
        print(f"FAILED with {failure}", file=sys.stderr)
    return 1 if failures else 0


ALL = [*qemus.SUPPORTED.values()]


def _run_all(one: Qemu, more: list[str]) -> list[str]:
    """Run everything with one version; return what failed."""
    version, release = qemu.version(one.program()), one.kernel.release()
    print(f"\n== QEMU {version} of {one.suite}, Linux {release}", flush=True)
    failures = [
        f"QEMU {one.version}: {what}"
        for what, argv in (
            ("the VM tests", [*PYTEST, *more]),
            ("make demo", [*DEMO]),
            ("make demo ARGS=--switch", [*DEMO, "--switch"]),
        )
        if not _run(one, argv)
    ]
    # Last: everything else has been tried with what there is now.
    if not (one.is_version(version) and is_of(one.kernel.name, release)):
        failures.append(
            f"QEMU {one.version}: {one.suite} has QEMU {version} and Linux {release} "
            "by now: bring tests/vm/supported.toml up to date"
        )
    return failures


def _run(one: Qemu, argv: list[str]) -> bool:
    environment = os.environ | {"VHOSTPCI_QEMU": one.version}
    return not subprocess.run([sys.executable, *argv], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
