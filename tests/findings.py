# SPDX-License-Identifier: Apache-2.0
"""What a `doctor` finds, or has printed with -j by the names of its checks."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from vhostpci_shared.findings import Check, Finding, Level, examine

Machine = TypeVar("Machine")

Findings = dict[str, list[dict[str, Any]]]


def parse(text: str) -> Findings:
    """Return what each check has found."""
    found: Findings = {}
    for one in json.loads(text):
        found.setdefault(one["check"], []).append(one)
    return found


def at(level: str, found: Findings) -> set[str]:
    """Return the checks that have found something of this level."""
    return {
        name
        for name, several in found.items()
        if any(one["level"] == level for one in several)
    }


def good(found: Findings, *names: str) -> bool:
    """Whether all that these checks have found is good."""
    return all(one["level"] == "ok" for name in names for one in found[name])


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
