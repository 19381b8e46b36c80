# SPDX-License-Identifier: Apache-2.0
"""Warnings and errors in the log of a guest's kernel."""

import re

from tests.vm.harness import Vm

_BAD = re.compile(
    r"\b(BUG|Oops|WARNING|KASAN|UBSAN|Call Trace|general protection|"
    r"possible (circular|recursive) locking|inconsistent lock state|suspicious RCU|"
    r"unreferenced object|scheduling while atomic|sleeping function|nobody cared|"
    r"x86/PAT: .*(conflict|freeing)|refcount_t|list_(add|del) corruption|"
    r"non-static key)\b"
)

# A guest that gets no processor for minutes, as at its boot on a loaded machine, takes
# what waits for it to be stuck.  What is stuck ends in the time limit of a test.
_LATE = re.compile(r"INFO: task \S+ blocked for more than .*?</TASK>", re.S)

# Two scans: kmemleak does not report an object that is a few seconds old.  Only a
# debug kernel has the file.
_LEAKS = """
file=/sys/kernel/debug/kmemleak
test -e $file || exit 0
for time in 1 2; do echo scan > $file; sleep 5; done
cat $file
"""


def check(vm: Vm) -> None:
    """Fail, with their text, if the kernel has warnings or errors in its log."""
    # Not "assert": pytest shows the text of an assertion in test files only.
    if found := complaints(vm):
        raise AssertionError(found)


def complaints(vm: Vm) -> str:
    """Return the lines of the kernel's log that report an error, and those around them.

    If debugfs is mounted and the kernel has kmemleak, leaked memory is reported too.
    """
    leaks = vm.run(_LEAKS, timeout=120).stdout
    said = _LATE.sub("", vm.run("dmesg").stdout)
    lines = [*said.splitlines(), *leaks.splitlines()]
    bad = [number for number, line in enumerate(lines) if _BAD.search(line)]
    return "\n".join(lines[bad[0] : bad[-1] + 25]) if bad else ""
