# SPDX-License-Identifier: Apache-2.0
"""A confined master whose kernel keeps programs' pages compressed in memory.

  master                      vhostpci-host              namespace
private memory: programs' pages, or the same in zram
shared region ------------------ window ---------------- vhostpci-guest --socket
  ring area: zram's pages, where memory is short
"""

from pathlib import Path

import pytest

from tests.vm import confined, kernel_modules
from tests.vm.confined import Link
from tests.vm.test_confined import ANONYMOUS
from tests.waiting import wait_for

pytestmark = [pytest.mark.vm, pytest.mark.long]

# Arguments: a name, how many programs, and MiB of each.  Pages begin with the name's
# digest, and the rest of them is random, so that they are kept as they are.
CROWD = r"""
import hashlib, mmap, os, signal, sys
name, programs, mib = sys.argv[1], *map(int, sys.argv[2:])
block, start = bytearray(os.urandom(1 << 20)), hashlib.sha256(name.encode()).digest()
for at in range(0, len(block), 4096):
    block[at : at + len(start)] = start
def use():
    kept = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(mib):
        kept.write(block)
    while True:
        for at in range(0, mib << 20, 4096):
            kept[at + 100] = 1
for _ in range(programs):
    if os.fork() == 0:
        use()
signal.pause()
"""


def test_pages_that_linux_compresses_come_into_the_region(here: Path) -> None:
    """Linux takes any page for them when it frees memory, whatever a zone keeps free.

    If this fails, Linux may have been repaired, and docs/security.md is to say so.
    """
    with confined.linked(here, cpus=4) as link:
        for name in ("lz4hc_compress", "zram"):
            kernel_modules.load(link.master, confined.KERNEL, name)
        link.master.run("echo 2G >/sys/block/zram0/disksize && mkswap /dev/zram0")
        assert link.check() == {}
        link.master.run("swapon /dev/zram0")
        found = link.check()
        assert [*found] == ["compression"]
        assert "ring area: zram0" in found["compression"]
        # With more than that it takes longer, if it happens at all.
        link.master.run("echo 512 >/proc/sys/vm/min_free_kbytes")
        link.master.run("echo 1 >/proc/sys/vm/overcommit_memory")
        link.master.put("/tmp/crowd.py", CROWD.encode())
        crowd = f"exec python3 /tmp/crowd.py {ANONYMOUS} 40 40"
        link.master.spawn(f"echo 1000 >/proc/self/oom_score_adj; {crowd}")
        wait_for(lambda: _found(link) > 100, lambda: _found(link), 300)


def _found(link: Link) -> int:
    wanted = {ANONYMOUS: confined.digest(ANONYMOUS)}
    return confined.search(link.window, wanted).times[ANONYMOUS]
