# SPDX-License-Identifier: Apache-2.0
"""Builds vhostpci_shared._memory; cffi_modules in shared/setup.py names this file.

guard.c and guard_api.h are also compiled into the agent's ring driver, which finds them
by symbolic links in guest/ring: the agent needs them always, and this module may be
missing, as relay/build.py says.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
HEADERS = ("guard_api.h", "barrier_api.h")

ffibuilder = FFI()
for name in HEADERS:
    ffibuilder.cdef((HERE / name).read_text())
ffibuilder.set_source(
    "vhostpci_shared._memory",
    "#include <stdint.h>\n" + "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=["memory/guard.c", "memory/barrier.c"],
    include_dirs=["memory"],
    depends=[f"memory/{name}" for name in HEADERS],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)
