# SPDX-License-Identifier: Apache-2.0
"""The keys that docs/json.md lists, and those of an output."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "docs" / "json.md"


def documented(title: str) -> set[str]:
    """Return the keys in the table under a title."""
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line[:3] == "| `"]
    return {key for row in rows for key in re.findall(r"`(.*?)`", row)}


def keys(value: Any, known: set[str], path: str = "") -> Iterator[str]:
    """Yield the keys of an output, as deep as the document goes."""
    for name, inner in value.items():
        key = f"{path}{name}"
        deeper = f"{key}[]." if isinstance(inner, list) else f"{key}."
        parts = inner if isinstance(inner, list) else [inner]
        if not any(one.startswith(deeper) for one in known):
            yield key
            continue
        for part in parts:
            if part is not None:
                yield from keys(part, known, deeper)
