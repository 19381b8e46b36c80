# SPDX-License-Identifier: Apache-2.0
"""Write the archive format of an initramfs ("newc", see cpio(5)).

Written here rather than by cpio(1): everything becomes root's, a device node
needs no privilege to be archived, and equal trees give equal archives.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class CpioWriter:
    """Appends entries to an open file; :meth:`close` ends the archive.

    The kernel accepts several archives in a row, so a closed archive may be
    followed by another in the same file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0

    def tree(self, root: Path) -> None:
        """Append everything below ``root``, under its path inside ``root``."""
        for path in _walk(root):
            self.path(path, str(path.relative_to(root)))

    def path(self, path: Path, name: str) -> None:
        """Append one file, directory or symbolic link as ``name``."""
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            data = os.fsencode(path.readlink())
        elif stat.S_ISREG(mode):
            data = path.read_bytes()
        else:
            data = b""
        self._entry(name, mode, data)

    def device(self, name: str, major: int, minor: int) -> None:
        """Append a character device."""
        self._entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def close(self) -> None:
        """Write the trailer that ends an archive."""
        self._entry("TRAILER!!!", 0, b"")

    def _entry(
        self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = os.fsencode(name) + b"\0"
        fields = (
            *(self._inode, mode, 0, 0, 1, 0, len(data)),
            *(0, 0, *device, len(encoded), 0),
        )
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._file.write(_padded(header + encoded) + _padded(data))


def _walk(root: Path) -> Iterator[Path]:
    """Everything below ``root``, a directory before what is in it."""
    for path in sorted(root.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _padded(data: bytes) -> bytes:
    """``data`` up to the next multiple of four, as newc wants it."""
    return data + bytes(-len(data) % 4)
