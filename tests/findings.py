# SPDX-License-Identifier: Apache-2.0
"""What a `doctor` has printed with -j, by the names of its checks."""

import json
from typing import Any

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
