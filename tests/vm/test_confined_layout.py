# SPDX-License-Identifier: Apache-2.0
"""Where a Linux that can has the bounce pool and the ring area of a confined master.

0 | low | shared | boot | ... | 4 GiB | high
             |
             +-- bounce pool, ring area: nowhere else
"""

import re

import pytest

from tests.vm import tiny_guest
from tests.vm.kernels import NEWEST
from vhostpci_host.cli import qemu_args
from vhostpci_host.config.confined import MIB
from vhostpci_host.config.confined_layout import Layout, Machine, layout
from vhostpci_host.config.device import DeviceConfig, Mode

pytestmark = pytest.mark.vm

POOL = r"software IO TLB: mapped \[mem (0x\w+)-(0x\w+)\]"
RING_AREA = r"cma: Reserved (\d+) MiB at (0x\w+)"


def boot(its: Layout, words: str) -> str:
    """Return the kernel's log of a master with this memory, which has no card."""
    # In attach mode QEMU makes the shared region itself: no daemon is needed.
    config = DeviceConfig(name="web", mode=Mode.ATTACH, confined=its.pool)
    size = sum(part.size for part in its.parts)
    args = qemu_args.flat(qemu_args.confined_memory(config, its))
    return tiny_guest.build(NEWEST).log(words, "-m", f"{size // MIB}M", *args)


def pool(log: str) -> tuple[int, int]:
    """Return where the bounce pool is."""
    found = re.search(POOL, log)
    assert found, log
    return int(found[1], 16), int(found[2], 16)


@pytest.mark.parametrize(
    ("memory", "size"), [(512, 64), (1024, 16), (4096, 128)], ids="{}M".format
)
def test_pool_and_ring_area_fill_the_shared_region(memory: int, size: int) -> None:
    its = layout(memory * MIB, size * MIB, Machine.Q35, attached=False)
    log = boot(its, its.kernel_words())
    shared = its.part("shared")
    assert pool(log) == (shared.start, its.rings)
    found = re.search(RING_AREA, log)
    assert found, log
    assert (int(found[1]) * MIB, int(found[2], 16)) == (
        shared.end - its.rings,
        its.rings,
    )


def test_pool_is_private_without_the_word_that_keeps_linux_from_boot_memory() -> None:
    its = layout(1024 * MIB, 16 * MIB, Machine.Q35, attached=False)
    words = [one for one in its.kernel_words().split() if "memmap=" not in one]
    start, _ = pool(boot(its, " ".join(words)))
    assert start >= its.part("boot").start
