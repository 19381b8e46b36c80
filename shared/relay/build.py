# SPDX-License-Identifier: Apache-2.0
"""Builds vhostpci_shared._relay; cffi_modules in shared/setup.py names this file.

Only the CFLAGS of tox turn warnings into errors: a newer compiler, with new
warnings, must not break an installation.  Nor must a machine without a compiler: there
the package is installed without this module, and the daemon relays in Python, and says
so.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef((HERE / "relay_api.h").read_text())
ffibuilder.set_source(
    "vhostpci_shared._relay",
    '#include "relay.h"',
    sources=["relay/relay.c", "relay/notifier.c"],
    include_dirs=["relay"],
    depends=[f"relay/{path.name}" for path in HERE.glob("*.h")],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)
