# SPDX-License-Identifier: Apache-2.0
"""The command `audit`: search a device's windows for what should not be there.

The agent copies each piece once, so a master that changes its memory meanwhile can make
the result wrong, and nothing else.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from vhostpci_shared.metadata_numbers import SIZE, SLAVE_ID
from vhostpci_shared.units import confined, count

from ..errors import Unusable
from ..serve.questions import MOST
from .dump import AgentWindows
from .served import find, one_device

PAGE = 4096
_SECONDS = 60
_ZERO = bytes(PAGE)
_PRINTABLE = bytes([*range(32, 127), 9, 10, 13])
_PASSWD = re.compile(
    rb"^[a-z_][a-z0-9_-]{0,31}:[^:\n]*:\d+:\d+:[^:\n]*:/[^:\n]*:/", re.M
)
_PRESENT, _ADDRESS_AND_FLAGS = 1, 1 << 63 | (1 << 46) - 1
_LEAST_ENTRIES = 32

WHAT = {
    "elf": "begin as a program or a library does (ELF)",
    "kernel": "have the banner of a Linux kernel",
    "passwd": "have lines as in /etc/passwd",
    "page_tables": "look like page tables",
    "text": "are text",
}
"""The marks of a page, and what a page with each of them does."""
CANNOT = (
    "This is no proof. The slave does not see what a page is used for: what was not "
    "found may be there in another form, and what was found may be from a packet. The "
    "script that `vhostpci-host master-check` prints asks the master's kernel."
)


def add_audit(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Each page is copied once, and nothing is changed.  Exit status: 1 if pages of "
        "a confined device have marks of what should not be there, or if not all pages "
        "were searched."
    )
    one_device(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="N",
        help="end after so long, with what was found by then and exit status 1 "
        "(default: %(default)s)",
    )
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_audit)


def _audit(arguments: argparse.Namespace) -> None:
    link = find(arguments.name)
    ranges = _ranges(link)
    if not ranges:
        raise Unusable(
            f"{arguments.name}: no window with a master's memory is there", code="G152"
        )
    until = time.monotonic() + arguments.seconds
    found = search(AgentWindows(link).read, ranges, lambda: time.monotonic() < until)
    found = {"name": link["name"], "confined": link.get("confined"), **found}
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(lines(found)))
    if found["searched"] < found["pages"]:
        raise Unusable(
            f"{link['name']}: {count(found['searched'])} of the "
            f"{count(found['pages'])} pages were searched in {arguments.seconds:g} s: "
            "give it more time, with --seconds N",
            code="G153",
        )
    if found["confined"] and any(found[one] for one in WHAT if one != "text"):
        raise SystemExit(1)


def _ranges(link: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the windows of a device with the bytes of each that are memory."""
    # The metadata, at the end of window 0, are not the master's.
    own = link.get("window_size", SIZE) - SIZE
    further = [(one["id"], one["size"]) for one in link["windows"]]
    return [one for one in [(SLAVE_ID, own), *further] if one[1] > 0]


def search(
    read: Callable[[int, int, int], bytes],
    ranges: list[tuple[int, int]],
    go_on: Callable[[], bool],
) -> dict[str, Any]:
    """Search windows; return how many pages there are of each kind.

    Args:
        read: returns a copy of a part of a window: its number, offset and length.
        ranges: the windows, each with the bytes that are searched.
        go_on: whether there is time for another piece.
    """
    counts = dict.fromkeys(("pages", "searched", "zero", "other", *WHAT), 0)
    counts["pages"] = sum(size // PAGE for _, size in ranges)
    for piece in _pieces(read, ranges):
        for at in range(0, len(piece), PAGE):
            page = piece[at : at + PAGE]
            counts["searched"] += 1
            counts["zero" if page == _ZERO[: len(page)] else "other"] += 1
            for mark in marks(page):
                counts[mark] += 1
        if not go_on():
            break
    return counts


def _pieces(
    read: Callable[[int, int, int], bytes], ranges: list[tuple[int, int]]
) -> Iterator[bytes]:
    for window, size in ranges:
        for at in range(0, size, MOST):
            yield read(window, at, min(MOST, size - at))


def marks(page: bytes) -> Iterator[str]:
    """Yield the marks that a page has."""
    if page.startswith(b"\x7fELF"):
        yield "elf"
    if b"Linux version " in page:
        yield "kernel"
    if _PASSWD.search(page):
        yield "passwd"
    if _is_page_table(page):
        yield "page_tables"
    # A page that is mostly zeros is no text, whatever the rest is.
    if len(page) - len(page.translate(None, _PRINTABLE)) > len(page) * 9 // 10:
        yield "text"


def _is_page_table(page: bytes) -> bool:
    """Whether all entries are those of an x86-64's or aarch64's page table, or zero."""
    if not any(page[::8]):
        return False
    entries = [one for one in memoryview(page).cast("Q") if one]
    return len(entries) >= _LEAST_ENTRIES and all(
        one & _PRESENT and one >> 12 & 0xFFFFFFFFF and not one & ~_ADDRESS_AND_FLAGS
        for one in entries
    )


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what was found, for people."""
    if found["confined"]:
        shared = confined(found["confined"])
        yield f"{found['name']}: confined, the daemon says: {shared} are shared"
    else:
        yield f"{found['name']}: not confined: the slave has the master's whole memory"
    searched, pages = count(found["searched"]), count(found["pages"])
    yield f"{searched} of the {pages} pages of its windows were searched"
    yield f"{count(found['zero'])} are zero, {count(found['other'])} are not; of these"
    for mark, does in WHAT.items():
        yield f"  {count(found[mark]):>6} {does}"
    yield CANNOT
