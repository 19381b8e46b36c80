# SPDX-License-Identifier: Apache-2.0
"""What a guest's kernel complains of."""

import re

from tests.vm.harness import Vm

_BAD = re.compile(
    r"\b(BUG|Oops|WARNING|KASAN|UBSAN|Call Trace|general protection|inconsistent|"
    r"possible (circular|recursive) locking|suspicious RCU|unreferenced object|"
    r"scheduling while atomic|sleeping function|x86/PAT: .*(conflict|freeing)|"
    r"nobody cared|refcount_t|list_(add|del) corruption)\b"
)


def complaints(vm: Vm) -> str:
    """The lines of the kernel's log that no clean kernel has, and what is around."""
    lines = vm.run("dmesg").stdout.splitlines()
    bad = [number for number, line in enumerate(lines) if _BAD.search(line)]
    return "\n".join(lines[bad[0] : bad[-1] + 25]) if bad else ""
