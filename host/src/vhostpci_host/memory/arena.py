# SPDX-License-Identifier: Apache-2.0
"""The arena: one file that is the master's RAM and the slave's window 0.

    0                      RAM                          2^n - 64K       2^n
    |  the master's memory  |  hole (never allocated)    |  metadata     |

The master's QEMU is told to use it as its memory, so nothing is copied and nothing
depends on who starts first.  Only the metadata is mapped here; a ring's index is
read with pread(), which needs no mapping and no reservation of huge pages.

A process that may open the file may cut it.  That ends neither the daemon (sigbus.py)
nor the device: the file gets its size back, and the metadata is written again.

The file is locked while its daemon lives.  One that a killed daemon left behind is
used again if it has the right size, since the master may still have it as RAM.
"""

import fcntl
import logging
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from ..config.device import DeviceConfig, window_size
from ..errors import HostError, explain
from ..fds import Fd
from .directory import make_directory
from .filesystems import filesystem, is_memory_file
from .regions import PlacedRegion, WindowFile, mapped_private
from .sigbus import GuardedMapping

log = logging.getLogger(__name__)

_MEMORY_FILESYSTEMS = ("tmpfs", "hugetlbfs", "ramfs")
_OPEN_TRIES = 8


class Arena:
    """The file of one device, open and locked (a `Store`).

    `file` is the one to give away: a lock belongs to the open file, so a slave's QEMU
    that had ours would hold the lock when we are dead.

    Raises:
        HostError: it cannot be made, or another daemon has it.
    """

    files: Mapping[int, WindowFile] = MappingProxyType({})

    def __init__(self, config: DeviceConfig) -> None:
        self.path = config.arena
        self.ram = config.memory
        self.size = window_size(config.memory)
        make_directory(config.memory_dir)
        with ExitStack() as undo:
            self._file, fresh = _open_locked(self.path, self.size)
            undo.enter_context(self._file)
            if fresh:
                undo.callback(self.path.unlink, missing_ok=True)
            self._set_owner_and_mode(config)
            self.filesystem = filesystem(self._file)
            self._check_size()
            self.file = undo.enter_context(_reopen(self._file))
            self._map = self._map_metadata()
            undo.pop_all()
        self.metadata = access.Metadata(access.find(self._map.view()))

    def _set_owner_and_mode(self, config: DeviceConfig) -> None:
        try:
            os.fchmod(self._file.fileno(), config.access)
            if config.group is not None:
                os.fchown(self._file.fileno(), -1, config.group)
        except OSError as error:
            raise explain("give away", self.path, error) from error

    def _check_size(self) -> None:
        """Say what the file system makes of our size, before a VM runs into it."""
        info = os.statvfs(self._file.fileno())
        if self.filesystem not in _MEMORY_FILESYSTEMS:
            log.warning(
                "%s is on %s: use a tmpfs or hugetlbfs directory (--memory-dir), or "
                "the master's memory is written to disk",
                self.path,
                self.filesystem,
            )
        if self.filesystem == "hugetlbfs":
            self._check_huge_pages(info.f_bsize)
        elif info.f_bavail * info.f_frsize < self.ram:
            log.warning(
                "%s has %d MiB free, and the master's memory is %d MiB: a VM that "
                "fills it is killed; enlarge it (mount -o remount,size=)",
                self.path.parent,
                info.f_bavail * info.f_frsize >> 20,
                self.ram >> 20,
            )

    def _check_huge_pages(self, page: int) -> None:
        if self.ram % page:
            raise HostError(
                f"memory of {self.ram >> 20}M is no multiple of the huge page of "
                f"{page >> 20}M in {self.path.parent}: choose one"
            )
        best = self.size - page
        if self.ram != best:
            log.warning(
                "the slave reserves huge pages for the whole %d MiB of %s, the master "
                "uses %d MiB: --memory %dM or %dM wastes none",
                self.size >> 20,
                self.path,
                self.ram >> 20,
                best >> 20,
                (self.size >> 1) - page >> 20,
            )

    def _map_metadata(self) -> GuardedMapping:
        page = os.statvfs(self._file.fileno()).f_bsize
        length = max(page, md.SIZE) if self.filesystem == "hugetlbfs" else md.SIZE
        try:
            return GuardedMapping(self._file, offset=self.size - length, length=length)
        except OSError as error:
            raise explain("map the metadata of", self.path, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """Read from the file; what was cut off from it is missing."""
        return os.pread(self._file.fileno(), size, offset)

    def restore(self, *, sizes: bool = True) -> bool:
        """Give the file its size back if another process has cut it.

        What was cut is lost, the metadata with it: it lies in the file's last 64 KiB.

        Args:
            sizes: ask the kernel for the file's size, too.  Without that, a cut is seen
                by the lost metadata, unless it took less than a page.

        Returns:
            Whether the metadata is to be written again.
        """
        # Look at the metadata first: if the file is too short for it, that look is a
        # bus error, which marks the mapping as lost (sigbus.py).
        intact = self.metadata.formatted() and not self._map.lost
        if intact and not sizes:
            return False
        cut = os.fstat(self._file.fileno()).st_size < self.size
        if cut:
            os.ftruncate(self._file.fileno(), self.size)
        if self._map.lost:
            self._map.map_again()
            return True
        return cut or not self.metadata.formatted()

    def windows(self, pid: int, for_vm: Callable[[], bool]) -> "ArenaWindows":
        """Return the windows of a front-end of process `pid`; any slave can have us."""
        return ArenaWindows(self, pid)

    def drop_windows_except(self, numbers: frozenset[int]) -> None:
        """There is window 0 only, and it stays."""

    def report_cuts(self) -> list[str]:
        """Return nothing: `restore` gives the only file its size back."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return the device's memory for the status."""
        return {
            "size": self.ram,
            "window": self.size,
            "path": str(self.path),
            "filesystem": self.filesystem,
        }

    def close(self) -> None:
        """Close the file, and remove it."""
        self.metadata.release()
        self._map.close()
        if _path_names(self._file, self.path):
            self.path.unlink()
        self.file.close()
        self._file.close()


class ArenaWindows:
    """The arena as the windows of one front-end.

    Args:
        arena: where all of its memory has to be.
        pid: its process, to see whether it shares that memory; 0 if unknown.
    """

    def __init__(self, arena: Arena, pid: int) -> None:
        self._arena = arena
        self._pid = pid

    def place(self, region: MemRegion, fd: Fd) -> PlacedRegion:
        """Check that the region is in the arena, shared, and below the metadata.

        Raises:
            ProtocolError: it is not; the text says what to change.
        """
        arena = self._arena
        # Before any other look at the file: fstat() may wait for its file system.
        other_kind = is_memory_file(arena.file) and not is_memory_file(fd)
        ours = os.fstat(arena.file.fileno())
        theirs = None if other_kind else os.fstat(fd.fileno())
        if theirs is None or (ours.st_dev, ours.st_ino) != (
            *(theirs.st_dev, theirs.st_ino),
        ):
            raise ProtocolError(
                f"the memory at {region.guest_addr:#x} ({region.size:#x} bytes) is not "
                f"the arena {arena.path}; start the master with {self._argument()}, "
                "and with no other memory device"
            )
        end = arena.size - md.SIZE
        if region.mmap_offset > end or region.size > end - region.mmap_offset:
            raise ProtocolError(
                f"the memory at {region.guest_addr:#x} reaches into the metadata, the "
                f"last {md.SIZE:#x} bytes of {arena.path}; start the master with "
                f"{self._argument()}"
            )
        if mapped_private(self._pid, ours):
            raise ProtocolError(
                f"the master (pid {self._pid}) maps the arena {arena.path} privately, "
                f"so no packet would ever arrive; start it with {self._argument()}"
            )
        return PlacedRegion(region, window=0, offset=region.mmap_offset)

    def read(self, window: int, offset: int, size: int) -> bytes:
        """Read from window 0, the only one."""
        return self._arena.read(offset, size)

    def _argument(self) -> str:
        arena = self._arena
        return (
            "-machine memory-backend=MEM -object memory-backend-file,id=MEM,"
            f"size={arena.ram >> 20}M,mem-path={arena.path},share=on"
        )


def _open_locked(path: Path, size: int) -> tuple[Fd, bool]:
    """Open the arena and lock it; say whether it is new, or was left behind."""
    for _ in range(_OPEN_TRIES):
        file = _open(path)
        try:
            _lock(path, file)
            if _path_names(file, path):
                before = os.fstat(file.fileno()).st_size
                if _set_size_or_unlink(path, file, size):
                    return file, not before
        except BaseException:
            file.close()
            raise
        file.close()
    raise HostError(f"arena {path} keeps being replaced by another process")


def _open(path: Path) -> Fd:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return Fd(os.open(path, flags, 0o600))
    except OSError as error:
        raise explain("open arena", path, error) from error


def _reopen(file: Fd) -> Fd:
    """Open the same file once more, as a separate open file."""
    path = f"/proc/self/fd/{file.fileno()}"
    return Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def _lock(path: Path, file: Fd) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise HostError(f"arena {path} is no regular file: move it away")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise HostError(
            f"arena {path} is in use by another vhostpci-host: stop it, or choose "
            "another name or --memory-dir"
        ) from None


def _set_size_or_unlink(path: Path, file: Fd, size: int) -> bool:
    """Size a new file; unlink one of another size, and say no."""
    now = os.fstat(file.fileno()).st_size
    if now == size:
        log.info("arena %s was left behind, and is used again", path)
        return True
    if now:
        log.info("arena %s was left behind with another size; making a new one", path)
        path.unlink()
        return False
    try:
        os.ftruncate(file.fileno(), size)
    except OSError as error:
        path.unlink()
        raise explain(f"make {size >> 20} MiB of", path, error) from error
    return True


def _path_names(file: Fd, path: Path) -> bool:
    """Whether `path` still names the file that we have open."""
    try:
        there = path.lstat()
    except OSError:
        return False
    here = os.fstat(file.fileno())
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
