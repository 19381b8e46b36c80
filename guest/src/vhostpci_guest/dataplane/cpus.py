# SPDX-License-Identifier: Apache-2.0
"""The processors that worker threads may run on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vhostpci_shared.errors import BadValue


def parse_cpus(text: str) -> frozenset[int]:
    """Understand a list of processors as taskset takes it: `0,3`, `2-5`, `0-6:2`.

    Raises:
        BadValue: it is not such a list, or this process may not use one of them.
    """
    cpus = frozenset(cpu for part in text.split(",") for cpu in _range(part, text))
    if unusable := cpus - os.sched_getaffinity(0):
        raise BadValue(
            f"{_list(unusable)} in {text!r}: this process may use only "
            f"{_list(os.sched_getaffinity(0))}",
            code="G051",
        )
    return cpus


def _range(part: str, text: str) -> range:
    span, colon, step = part.partition(":")
    first, dash, last = span.partition("-")
    # A step is of a range, as taskset has it.
    if not _numbers(first, last if dash else "0", step if colon else "1") or (
        colon and not dash
    ):
        raise BadValue(
            f"{part!r} in {text!r} is neither a processor's number nor a range such as "
            "2-5 or 0-6:2",
            code="G052",
        )
    start, end = int(first), int(last or first)
    if end < start or (colon and int(step) == 0):
        raise BadValue(f"{part!r} in {text!r}: the range is empty", code="G053")
    # Bounded by what there is: a list of a billion numbers would take all memory.
    if end >= _MOST:
        raise BadValue(
            f"{part!r} in {text!r}: no machine has that processor", code="G054"
        )
    return range(start, end + 1, int(step or 1))


_MOST = 1 << 16


def _numbers(*words: str) -> bool:
    return all(word.isascii() and word.isdecimal() for word in words)


def _list(cpus: frozenset[int] | set[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus))


@contextmanager
def threads_on(cpus: frozenset[int] | None) -> Iterator[None]:
    """Have the threads that are started inside run on these processors; None: on any.

    Raises:
        OSError: none of them can be used any more.
    """
    if cpus is None:
        yield
        return
    # A thread inherits the processors of the one that starts it.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
