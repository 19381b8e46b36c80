# SPDX-License-Identifier: Apache-2.0
"""Descriptors of all kinds that a peer may send."""

import fcntl
import os
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vhostpci_host.fds import Fd

CONTENTS = b"not ours" * 512
"""What the file on the disk holds before and after."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Files:
    """Makes descriptors; `close` closes them.

    Args:
        ram: the master's memory.
        directory: for a file on the disk, which must not be changed.
    """

    def __init__(self, ram: int, directory: Path) -> None:
        self._undo = ExitStack()
        self._ram = ram
        self._disk = directory / "disk"
        self._directory = directory
        self._made: dict[str, int] = {}
        self._disk.write_bytes(CONTENTS)

    def get(self, kind: str) -> int:
        """Return the descriptor of a kind, always the same one."""
        if kind not in self._made:
            self._made[kind] = self._own(KINDS[kind](self))
        return self._made[kind]

    def _own(self, fd: int) -> int:
        self._undo.enter_context(Fd(fd))
        return fd

    def new(self, kind: str) -> Fd:
        """Return a descriptor that is the caller's, and no other's."""
        return Fd(KINDS[kind](self))

    # Opened again and not duplicated: a lock belongs to the open file.

    def ram(self) -> int:
        return os.open(f"/proc/self/fd/{self._ram}", os.O_RDWR)

    def read_only_ram(self) -> int:
        return os.open(f"/proc/self/fd/{self._ram}", os.O_RDONLY)

    def memfd(self, size: int = 4 << 20, seals: int = 0) -> int:
        fd = os.memfd_create("stray", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    def blocking_eventfd(self) -> int:
        return os.eventfd(0, os.EFD_SEMAPHORE)

    def full_eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        os.eventfd_write(fd, 2**64 - 2)
        return fd

    def pipe(self, end: int, *, closed: bool = False) -> int:
        ends = os.pipe()
        if closed:
            os.close(ends[1 - end])
        else:
            self._own(ends[1 - end])
        return ends[end]

    def socket(self, kind: int = socket.SOCK_STREAM, *, closed: bool = False) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        if closed:
            theirs.close()
        else:
            self._undo.enter_context(theirs)
        return ours.detach()

    def disk(self) -> int:
        return os.open(self._disk, os.O_RDWR)

    def directory(self) -> int:
        return os.open(self._directory, os.O_RDONLY)

    def path_only(self) -> int:
        return os.open(self._disk, os.O_PATH)

    def epoll(self) -> int:
        with select.epoll() as made:
            return os.dup(made.fileno())

    def close(self) -> None:
        """Close them all; the file on the disk must be as it was."""
        self._undo.close()
        assert self._disk.read_bytes() == CONTENTS, "a file of another's was changed"
        self._disk.unlink()


KINDS: dict[str, Callable[[Files], int]] = {
    "ram": Files.ram,
    "eventfd": lambda _: os.eventfd(0, os.EFD_NONBLOCK),
    "read-only ram": Files.read_only_ram,
    "memfd": Files.memfd,
    "sealed memfd": lambda files: files.memfd(seals=_SEALS),
    "empty memfd": lambda files: files.memfd(0),
    "huge memfd": lambda files: files.memfd(1 << 46),
    "odd memfd": lambda files: files.memfd(0x1001),
    "blocking eventfd": Files.blocking_eventfd,
    "full eventfd": Files.full_eventfd,
    "pipe to read": lambda files: files.pipe(0),
    "pipe to write": lambda files: files.pipe(1),
    "pipe without a writer": lambda files: files.pipe(0, closed=True),
    "pipe without a reader": lambda files: files.pipe(1, closed=True),
    "socket": Files.socket,
    "datagram socket": lambda files: files.socket(socket.SOCK_DGRAM),
    "closed socket": lambda files: files.socket(closed=True),
    "file on the disk": Files.disk,
    "path": Files.path_only,
    "directory": Files.directory,
    "epoll": Files.epoll,
    "null": lambda _: os.open("/dev/null", os.O_RDWR),
    "zero": lambda _: os.open("/dev/zero", os.O_RDWR),
}
"""Makes a descriptor of each kind; the first ones are those that serve."""
