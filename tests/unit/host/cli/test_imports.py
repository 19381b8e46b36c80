# SPDX-License-Identifier: Apache-2.0
"""What the short commands import: a script or a probe may run them each second."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "asyncio",
    "qemu.qmp",
    "ssl",
    "subprocess",
    "tomllib",
    "vhostpci_host.config.file",
    "vhostpci_host.daemon.daemon",
    "vhostpci_host.device.device",
    "vhostpci_host.vhost_user.backend",
    "vhostpci_shared.metadata",
    "xml.etree.ElementTree",
}

RUN = """
import sys
from vhostpci_host.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "list",
        "stats",
        "graph",
        "remove a",
        "--help",
        "--version",
        "status --help",
    ],
)
def test_short_command_imports_no_heavy_module(command: str, tmp_path: Path) -> None:
    words = command.split()
    if not command.startswith("-"):
        words += ["--run-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=True
    )
    modules = set(done.stderr.split())
    assert "vhostpci_host.cli.main" in modules
    assert modules & HEAVY == set()
