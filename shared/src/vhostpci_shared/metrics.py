# SPDX-License-Identifier: Apache-2.0
"""Metrics in the text format of Prometheus, for a file or a scrape.

The slave must need no package, so this module writes the format for both sides, and not
prometheus-client, of which a test uses the parser.  docs/metrics.md has the names.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE = "counter", "gauge"


class Family:
    """One metric: its name, its meaning, and its values by their labels.

    Args:
        name: without `_total`, which a counter's samples have.
        help: what it counts or says.
        kind: COUNTER or GAUGE.
    """

    def __init__(self, name: str, help: str, kind: str = GAUGE) -> None:
        self.name = name + "_total" * (kind == COUNTER)
        self.help = help
        self.kind = kind
        self._samples: list[tuple[Mapping[str, str], int]] = []

    def add(self, value: int, **labels: str) -> None:
        """Add the value for these labels."""
        self._samples.append((labels, int(value)))  # a bool is 0 or 1

    def lines(self) -> Iterable[str]:
        """Yield its lines; none without a value."""
        if not self._samples:
            return
        yield f"# HELP {self.name} {_escape(self.help, quote=False)}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self._samples:
            pairs = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
            yield f"{self.name}{{{pairs}}} {value}" if pairs else f"{self.name} {value}"


class ConfinedFamilies:
    """The metrics of confined devices, which both sides have.

    Args:
        prefix: what the names of this side's metrics of devices begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._is = Family(
            f"{prefix}_confined", "1: the slave has only a part of the master's memory."
        )
        self._shared = Family(
            f"{prefix}_confined_shared_bytes", "What it has of a confined master's."
        )
        self._memory = Family(
            f"{prefix}_confined_memory_bytes", "A confined master's whole memory."
        )

    def add(self, found: Mapping[str, Any] | None, **labels: str) -> None:
        """Add a device by the value of `confined` in the JSON of its status."""
        self._is.add(bool(found), **labels)
        if not found:
            return
        self._shared.add(found["shared"], **labels)
        # In attach mode the daemon does not know it: a zero would look like a size.
        if found["memory"]:
            self._memory.add(found["memory"], **labels)

    def all(self) -> list[Family]:
        return [self._is, self._shared, self._memory]


def _escape(text: str, *, quote: bool = True) -> str:
    """Escape what would end a line or a label's value."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def render(families: Iterable[Family]) -> str:
    """Return the text of all metrics."""
    return "".join(f"{line}\n" for family in families for line in family.lines())


def write_file(path: Path, text: str) -> None:
    """Put a text into a file that node_exporter reads meanwhile: all of it, or none.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    # In the same directory, as a rename does not leave its file system.  node_exporter
    # reads only names that end in ".prom".
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
