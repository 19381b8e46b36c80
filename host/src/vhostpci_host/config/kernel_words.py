# SPDX-License-Identifier: Apache-2.0
"""The words of a confined master's kernel command line.

They make the kernel put its bounce pool and its ring area into the shared region, and
nothing else.  Each rests on where the region lies: see `confined_layout.py`.
"""

import re
from collections.abc import Iterator

from .confined import MIB

SLOT = 2048
"""Bytes that Linux's bounce pool is handed out in (IO_TLB_SIZE)."""

LEND_NOTHING = 'sysctl.vm.lowmem_reserve_ratio="1 1"'
"""The word that keeps the memory of programs out of the ring area.

Linux lends a CMA area to pages that it can move, which are those of programs and files:
when other memory is used up, and whenever it compacts the memory below 4 GiB.  The
ratios are those of the zones DMA and DMA32, of which one has the ring area.  With 1 a
zone keeps as many pages free as all zones above it have: if they have more than it has
itself, what could use them takes nothing of it (mm/page_alloc.c,
setup_per_zone_lowmem_reserve(), __zone_watermark_ok()).

The kernel sets it just before it starts init (fs/proc/proc_sysctl.c, do_sysctl_args()).
It takes no other separator of the two numbers than a blank, so there are quotes.
"""

_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')


def kernel_words(pool: range, rings: range, boot: range | None) -> Iterator[str]:
    """Yield the words for a layout, given as ranges of guest addresses.

    Args:
        pool: the bounce pool.
        rings: the ring area.
        boot: the memory that Linux must not use, if there is any.
    """
    # With nodes, Linux would keep each node's own data in it: also in the shared
    # region.
    yield "numa=off"
    # Else a self-extracting kernel, or the loader in it for EFI, may put the kernel
    # into the shared region.
    yield "nokaslr"
    yield f"swiotlb={len(pool) // SLOT},force"
    yield f"cma={len(rings) // MIB}M@{rings.start:#x}-{rings.stop:#x}"
    if boot:
        # From memory (1) to reserved (2).  Not `$`, which a boot loader's script
        # would expand.
        yield f"memmap={len(boot) // MIB}M%{boot.start:#x}-1+2"
    # Else what the card's receive buffers held before comes into the pool.
    yield "init_on_alloc=1"
    yield LEND_NOTHING


def split(line: str) -> list[str]:
    """Return the words of a kernel command line, without quotes, up to those for init.

    A blank between quotes is a part of its word (lib/cmdline.c, next_arg()).
    """
    words = [one.replace('"', "") for one in _WORD.findall(line)]
    return words[: words.index("--")] if "--" in words else words


def key(word: str) -> str:
    """Return the part of a word before its value."""
    return word.partition("=")[0]


def lacking(line: str, wanted: list[str]) -> list[str]:
    """Return which of the words a kernel command line lacks; of a key, the last counts.

    Args:
        line: the command line.
        wanted: the words, with quotes where they need them.
    """
    last = {key(one): one for one in split(line)}
    return [one for one in wanted if last.get(key(one)) != one.replace('"', "")]
