# SPDX-License-Identifier: Apache-2.0
"""The boundary between Python and the C ring driver."""

import re
from pathlib import Path

import vhostpci_guest

# import-linter sees modules in Python only, and `_ring` is an extension in C.
IMPORTS_RING = re.compile(r"^\s*(from \S*\b_ring import|.*import .*\b_ring\b)", re.M)


def test_only_native_imports_the_extension() -> None:
    package = Path(vhostpci_guest.__file__).parent
    importers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if IMPORTS_RING.search(path.read_text())
    ]
    assert importers == ["dataplane/native.py"]
