# SPDX-License-Identifier: Apache-2.0
"""Modules of the tests that a program in a VM imports, with those that they import."""

import subprocess
import sys
from pathlib import Path

from tests.vm.harness import Vm
from tests.vm.image import CHECKOUT

PLACE = "/tmp/modules"
"""Where they are in the VM; such a program has it in `sys.path`."""
_IMPORTED = """
import importlib, sys
importlib.import_module(sys.argv[1])
for name, module in sys.modules.items():
    if name.startswith("tests.") and module.__file__:
        print(module.__file__)
"""


def put(vm: Vm, name: str) -> None:
    """Put a module into a VM, and all modules of the tests that it imports."""
    for source in sources(name):
        vm.put(f"{PLACE}/{source}", (CHECKOUT / source).read_bytes())


def sources(name: str) -> list[Path]:
    """Return their files, by their paths in this checkout."""
    command = [sys.executable, "-c", _IMPORTED, name]
    done = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    return [Path(line).relative_to(CHECKOUT) for line in done.stdout.decode().split()]
