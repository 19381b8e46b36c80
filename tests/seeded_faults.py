# SPDX-License-Identifier: Apache-2.0
"""What a `doctor` finds on a machine with a fault that a test has put there."""

from collections.abc import Sequence
from typing import TypeVar

from vhostpci_shared.findings import Check, Finding, Level, examine

Machine = TypeVar("Machine")


def complaints(checks: Sequence[Check[Machine]], machine: Machine) -> list[Finding]:
    """Return what is not as it should be; each says what it means, and what to do."""
    bad = (Level.ERROR, Level.WARN)
    found = [one for one in examine(checks, machine) if one.level in bad]
    for one in found:
        assert one.looked_at
        assert one.found
        assert one.means
        assert one.repair
    return found


def blind(checks: Sequence[Check[Machine]], machine: Machine) -> set[str]:
    """Return the checks that have seen nothing good on this machine."""
    findings = examine(checks, machine)
    looked = {one.check for one in findings if one.level is Level.OK}
    return {check.name for check in checks} - looked
