# SPDX-License-Identifier: Apache-2.0
"""Attach mode: the master's memory is whatever it is, each file of it a window.

    window 0      a small file of ours: the metadata, nothing else
    window 4711   a file of the master's: memfd, DIMM, NUMA node, huge pages
    window 4712   another

A file is known by st_dev and st_ino, so a region that comes again, in whatever
message, from whichever connection, has the window that it had; our descriptor keeps
the number from being another file's.  A file that has another size by then (DPDK's
heap grows in its file) is a new window: the slave has mapped the old one as it was.
A window's number is the IVPosition of the
device that shows it.  It is unique in this daemon, and the numbers start at random,
so that a slave VM with devices of two daemons has hardly ever two of one number (if
it has, its agent says so).

We map nothing of the master's: a ring's index is read with pread(), which a file
that shrinks cannot kill us by.  Window 0 is sealed against shrinking.
"""

import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from ..config.device import DeviceConfig
from ..errors import HostError
from ..fds import Fd
from .regions import PlacedRegion, WindowFile, mapped_private

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class WindowIds:
    """The numbers of one daemon's windows.

    Args:
        first: where to start; at random if it is not given.
    """

    def __init__(self, first: int | None = None) -> None:
        self._next = first or random.randint(md.FIRST_WINDOW, md.LAST_WINDOW)
        self._used: set[int] = set()

    def new(self) -> int:
        """Return a number that has not been used for as long as can be.

        Raises:
            HostError: all are in use.
        """
        for _ in range(md.FIRST_WINDOW, md.LAST_WINDOW + 1):
            number = self._next
            self._next = number + 1 if number < md.LAST_WINDOW else md.FIRST_WINDOW
            if number not in self._used:
                self._used.add(number)
                return number
        raise HostError(f"all {len(self._used)} windows are in use: remove a device")

    def free(self, number: int) -> None:
        """Take a number back."""
        self._used.discard(number)


class AttachedMemory:
    """Window 0 of one device, and the master's files (a `Store`).

    Args:
        config: the device's.
        ids: where windows get their numbers.

    Raises:
        HostError: there is no memory for it.
    """

    size = md.SIZE

    def __init__(self, config: DeviceConfig, ids: WindowIds) -> None:
        self.files: dict[int, WindowFile] = {}
        self._ids = ids
        self._reported_cuts: set[int] = set()
        with ExitStack() as undo:
            self.file = undo.enter_context(_sealed_memfd(f"vhostpci-{config.name}"))
            self._map = mmap.mmap(self.file.fileno(), md.SIZE)
            undo.pop_all()
        self.metadata = access.Metadata(memoryview(self._map))

    def windows(self, pid: int, for_vm: Callable[[], bool]) -> "AttachedWindows":
        """Return the windows of a front-end of process `pid`."""
        return AttachedWindows(self, pid, for_vm)

    def window(self, key: tuple[int, int, int]) -> int | None:
        """Return the window of a file of that size, if it has one."""
        return next((n for n, file in self.files.items() if file.key == key), None)

    def add(self, fd: Fd, info: os.stat_result) -> int:
        """Make a window of a file; return its number.

        Raises:
            HostError: there are no numbers left.
        """
        with ExitStack() as undo:
            file = undo.enter_context(fd.copy())
            number = self._ids.new()
            undo.pop_all()
        self.files[number] = WindowFile(file, info.st_size, _file_key(info))
        return number

    def drop_windows_except(self, numbers: frozenset[int]) -> None:
        """Let go of all windows but these."""
        for number in self.files.keys() - numbers:
            self.files.pop(number).file.close()
            self._ids.free(number)
            self._reported_cuts.discard(number)

    def restore(self, *, sizes: bool = True) -> bool:
        """Return False: window 0 is sealed, so no process can cut it."""
        return False

    def report_cuts(self) -> list[str]:
        """Say which of the master's files are shorter than they were, each once."""
        found = []
        for number in sorted(self.files.keys() - self._reported_cuts):
            window = self.files[number]
            size = os.fstat(window.file.fileno()).st_size
            if size < window.size:
                self._reported_cuts.add(number)
                found.append(
                    f"the memory file of window {number} was cut from {window.size} to "
                    f"{size} bytes: what lies there is lost, and rings that need it "
                    "are dead until the master starts anew"
                )
        return found

    def describe(self) -> dict[str, Any]:
        """Return the device's memory for the status."""
        return {"size": 0, "window": self.size, "path": None, "filesystem": "memfd"}

    def close(self) -> None:
        """Let go of all."""
        self.drop_windows_except(frozenset())
        self.metadata.release()
        self._map.close()
        self.file.close()


class AttachedWindows:
    """The master's files as the windows of one front-end.

    Args:
        store: which has them.
        pid: the front-end's process, to see whether it shares its memory.
        for_vm: says whether the slave is a VM, which takes powers of two only.
    """

    def __init__(
        self, store: AttachedMemory, pid: int, for_vm: Callable[[], bool]
    ) -> None:
        self._store = store
        self._pid = pid
        self._for_vm = for_vm

    def place(self, region: MemRegion, fd: Fd) -> PlacedRegion:
        """Find the window of the region's file, or make one.

        Raises:
            ProtocolError: the slave cannot have it; the text says what to change.
        """
        info = os.fstat(fd.fileno())
        number = self._store.window(_file_key(info))
        size = (
            self._check_new_file(region, fd, info) if number is None else info.st_size
        )
        if region.mmap_offset > size or region.size > size - region.mmap_offset:
            raise ProtocolError(
                f"{_describe(region)} reaches beyond the end of its file, which has "
                f"{size:#x} bytes"
            )
        self._check_bar(region, info)
        if number is None:
            try:
                number = self._store.add(fd, info)
            except HostError as error:
                raise ProtocolError(str(error)) from error
        return PlacedRegion(region, window=number, offset=region.mmap_offset)

    def _check_new_file(self, region: MemRegion, fd: Fd, info: os.stat_result) -> int:
        """Check a file that we have not seen before; return its size."""
        if not stat.S_ISREG(info.st_mode):
            raise ProtocolError(f"{_describe(region)} is in no file that can be mapped")
        if fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise ProtocolError(
                f"{_describe(region)} came with a file that may not be written: the "
                "slave could put no packet there"
            )
        if mapped_private(self._pid, info):
            raise ProtocolError(
                f"the master (pid {self._pid}) maps {_describe(region)} privately, so "
                "no packet would ever arrive; start it with memory that is shared: "
                "share=on (QEMU), <access mode='shared'/> (libvirt)"
            )
        return info.st_size

    def _check_bar(self, region: MemRegion, info: os.stat_result) -> None:
        """Refuse, for a slave VM, what would end its QEMU."""
        size = info.st_size
        if size.bit_count() != 1 and self._for_vm():
            raise ProtocolError(
                f"{_describe(region)} is in a file of {size} bytes ({size / 2**20:g} "
                "MiB), and a slave VM's window is a PCI BAR, which is a power of two: "
                f"give the master's memory backend size={_round_up(size) >> 20}M, use "
                "--mode arena, or serve it by a process (vhostpci-guest run --socket)"
            )

    def read(self, window: int, offset: int, size: int) -> bytes:
        """Read from a window; what its owner has cut off is missing."""
        return os.pread(self._store.files[window].file.fileno(), size, offset)


def _sealed_memfd(name: str) -> Fd:
    try:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        file = Fd(os.memfd_create(name[:200], flags))
    except OSError as error:
        raise HostError(f"no memory for the metadata: {error.strerror}") from error
    os.ftruncate(file.fileno(), md.SIZE)
    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    return file


def _file_key(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_dev, info.st_ino, info.st_size


def _describe(region: MemRegion) -> str:
    return f"the memory at {region.guest_addr:#x} ({region.size:#x} bytes)"


def _round_up(size: int) -> int:
    return 1 << (size - 1).bit_length()
