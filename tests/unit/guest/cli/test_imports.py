# SPDX-License-Identifier: Apache-2.0
"""What the short commands import: in an emulated slave VM each module takes long."""

import subprocess
import sys

import pytest

from vhostpci_guest.pci.binding_names import NAMES
from vhostpci_guest.pci.bindings import BINDINGS

HEAVY = {
    "_cffi_backend",
    "asyncio",
    "cffi",
    "dataclasses",
    "pyroute2",
    "pyudev",
    "vhostpci_guest._ring",
    "vhostpci_guest.agent",
    "vhostpci_shared.metadata",
}

RUN = """
import sys
from vhostpci_guest import status_socket
from vhostpci_guest.cli.main import main
status_socket.ask = lambda: ([], [])  # no agent of this machine is asked
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


def imported_by(*arguments: str) -> set[str]:
    """Return the modules that a command has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "-j"],
        ["stats"],
        ["--help"],
        ["run", "--help"],
        ["stats", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_short_command_imports_no_heavy_module(arguments: list[str]) -> None:
    modules = imported_by(*arguments)
    assert "vhostpci_guest.cli.main" in modules
    assert modules & HEAVY == set()


def test_names_of_the_bindings_are_those_of_the_bindings() -> None:
    assert tuple(BINDINGS) == NAMES
