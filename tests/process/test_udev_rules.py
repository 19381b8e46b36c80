# SPDX-License-Identifier: Apache-2.0
"""The udev rules that go with uio_vhostpci, as udev itself reads them."""

import subprocess
from pathlib import Path

import pytest

from tests.waiting import PROCESS_TIMEOUT

RULES = Path(__file__).parents[2] / "kmod/60-vhostpci.rules"

# udev reads what is in its directories only: here is one of our own, for this process.
TEST = """
mkdir -p /run/udev && mount -t tmpfs none /run/udev && mkdir /run/udev/rules.d
cp "$1" /run/udev/rules.d/60-vhostpci.rules
exec udevadm test --action=add /sys/class/net/lo
"""


def complaints(rules: Path) -> list[str]:
    """Return what udev reports about a file of rules."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", TEST, "sh", str(rules)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROCESS_TIMEOUT,
    )
    said = [line for line in done.stdout.splitlines() if "60-vhostpci" in line]
    assert said, f"udev has not read the rules:\n{done.stdout}"
    return [line for line in said if not line.startswith("Reading rules file")]


def test_udev_understands_our_rules() -> None:
    assert complaints(RULES) == []


@pytest.mark.parametrize(
    ("right", "wrong"), [("SYMLINK", "SYMLNK"), ("vhostpci_end", "the_end")]
)
def test_udev_reports_rules_that_are_wrong(
    tmp_path: Path, right: str, wrong: str
) -> None:
    rules = tmp_path / "rules"
    rules.write_text(RULES.read_text().replace(right, wrong, 1))
    assert complaints(rules)
