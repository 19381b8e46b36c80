# SPDX-License-Identifier: Apache-2.0
"""Make the list of system calls that the daemon may make: tools/system_calls.py

The list is `filter/allowed.py`, for the filter of `vhostpci-host run --seccomp`.
It is made of comments in the sources, each beside the code that needs the calls::

    # System calls: connect, socket(AF_UNIX).

A word in brackets is a condition, by its name in `filter/conditions.py`: the call is
allowed only with such an argument.  A call of which a comment names no condition is
allowed with all.

    tools/system_calls.py               say whether the list is out of date (status 1)
    tools/system_calls.py --write       make the list again
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILTER = ROOT / "host/src/vhostpci_host/filter"
LIST = FILTER / "allowed.py"
LINE = 88

_LINE = re.compile(r"^\s*(?:#|\*) System calls: (.+)\.$", re.MULTILINE)
_ANY_LINE = re.compile(r"^\s*(?:#|\*) System calls:", re.MULTILINE)
_WORD = re.compile(r"([a-z][a-z0-9_]*)(?:\(([A-Z][A-Z0-9_]*)\))?")

Calls = dict[str, set[str]]
"""The conditions of each system call; none: it is allowed with all arguments."""


class NoList(Exception):
    """A comment cannot be understood."""


def sources() -> list[Path]:
    """Return the files of which the daemon is made."""
    host = sorted((ROOT / "host/src/vhostpci_host").rglob("*.py"))
    shared = sorted((ROOT / "shared/src/vhostpci_shared").glob("*.py"))
    in_c = sorted((ROOT / "shared").glob("*/*.c"))
    return [*host, *shared, *in_c]


def declared(text: str) -> Calls:
    """Return the system calls that a source names.

    Raises:
        NoList: one of its comments is written in another way.
    """
    lines = _LINE.findall(text)
    if len(lines) != len(_ANY_LINE.findall(text)):
        raise NoList("a line of system calls does not end with a full stop")
    found: Calls = {}
    for word in ", ".join(lines).split(", ") if lines else []:
        match = _WORD.fullmatch(word)
        if match is None:
            raise NoList(f"{word!r} is no system call with a condition")
        call, condition = match.groups()
        found.setdefault(call, set()).update(filter(None, [condition]))
    return found


def joined(texts: Iterable[str]) -> Calls:
    """Return the system calls of all sources.

    Raises:
        NoList: one source names a call with a condition, another one without.
    """
    found: Calls = {}
    for text in texts:
        for call, names in declared(text).items():
            if call in found and bool(found[call]) != bool(names):
                raise NoList(f"{call}() has a condition in one place, and none in one")
            found.setdefault(call, set()).update(names)
    return found


def as_module(calls: Calls) -> str:
    """Return the list as a module of Python."""
    lines = [_line(call, sorted(calls[call])) for call in sorted(calls)]
    return "\n".join([_HEAD, *lines, "}", ""])


def _line(call: str, names: list[str]) -> str:
    # As the formatter would write it, so that both leave the file alone.
    quoted = [f'"{name}"' for name in names]
    inside = f"{quoted[0]}," if len(quoted) == 1 else ", ".join(quoted)
    line = f'    "{call}": ({inside}),'
    if len(line) <= LINE:
        return line
    return "\n".join([f'    "{call}": (', *(f"        {q}," for q in quoted), "    ),"])


_HEAD = '''\
# SPDX-License-Identifier: Apache-2.0
"""The system calls that this program makes: written by tools/system_calls.py.

Do not change this file: write the calls into a comment beside the code that needs them.
"""

from collections.abc import Mapping

ALLOWED: Mapping[str, tuple[str, ...]] = {'''


def main(arguments: list[str]) -> int:
    """Compare or write the list; return the exit status."""
    text = as_module(joined(path.read_text() for path in sources()))
    if arguments == ["--write"]:
        LIST.write_text(text)
        return 0
    if LIST.is_file() and LIST.read_text() == text:
        return 0
    print(f"{LIST}: out of date: run tools/system_calls.py --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
