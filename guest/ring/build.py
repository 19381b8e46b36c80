# SPDX-License-Identifier: Apache-2.0
"""Builds vhostpci_guest._ring; cffi_modules in guest/setup.py names this file.

Only the CFLAGS of tox turn warnings into errors: a newer compiler, with new
warnings, must not break an installation.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
# What Python may call.  guard_api.h and guard.c are symbolic links: `shared` has them,
# for the daemon uses them, too.  An sdist has copies in their place.
HEADERS = ("ring_api.h", "guard_api.h")
SOURCES = [
    *("mem.c", "vq.c", "split.c", "packed.c", "packed_start.c"),
    *("net.c", "segment.c", "tx.c", "rx.c", "tap.c", "uring.c", "capture.c"),
    *("loop.c", "worker.c", "calls.c", "thread.c", "confine.c", "guard.c"),
]

ffibuilder = FFI()
for name in HEADERS:
    ffibuilder.cdef((HERE / name).read_text())
ffibuilder.set_source(
    "vhostpci_guest._ring",
    '#include "ring.h"\n#include "guard_api.h"',
    sources=[f"ring/{name}" for name in SOURCES],
    include_dirs=["ring"],
    depends=[f"ring/{path.name}" for path in HERE.glob("*.h")],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-pthread", "-fno-strict-aliasing"],
    extra_link_args=["-pthread"],
)
