# SPDX-License-Identifier: Apache-2.0
"""The arena: one file that is the master's RAM and the slave's window 0.

    0                      RAM                          2^n - 64K       2^n
    |  the master's memory  |  hole (never allocated)    |  metadata     |

The master's QEMU is told to use it as its memory, so nothing is copied and nothing
depends on who starts first.  Only the metadata is mapped here (arena_metadata.py); a
ring's index is read with pread(), which needs no mapping and no reservation of huge
pages.

The file outlives a daemon that is killed, and one that ends after a master has had it:
that master still has it as its RAM, and the daemon's successor serves it again
(arena_file.py).  If another process removes the file's name, no successor can find it.
"""

import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, Self

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.errors import code_of
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from ..config.device import DeviceConfig, window_size
from ..errors import HostError, explain
from ..fds import Fd, file_number
from ..keeper.shelf import Left
from ..keeper.store import Keep
from . import confined
from .arena_file import (
    ArenaFile,
    check_left,
    link_again,
    lost_name,
    names,
    open_arena,
    reopen,
    reserve,
    unlock,
)
from .arena_metadata import ArenaMetadata
from .directory import make_directory
from .filesystems import filesystem, is_memory_file
from .kept import ArenaState
from .process_maps import is_alive, mapped_private
from .regions import PlacedRegion, WindowFile
from .room import Promise, promise

log = logging.getLogger(__name__)

_MEMORY_FILESYSTEMS = ("tmpfs", "hugetlbfs", "ramfs")
PIECE = 64 << 20
"""Bytes of a master's RAM that are reserved at a time: some milliseconds."""


class Arena:
    """The file of one device, open and locked (a `Store`).

    `file` is the one to give away: a lock belongs to the open file, so a slave's QEMU
    that had ours would hold the lock when we are dead.

    Args:
        config: the device's.
        left: what a daemon before us has left, open and locked; None without that.

    Raises:
        HostError: it cannot be made, or another daemon has it.
    """

    files: Mapping[int, WindowFile] = MappingProxyType({})

    def __init__(self, config: DeviceConfig, left: ArenaFile | None = None) -> None:
        self.path = config.arena
        self.config = config
        self.ram = config.shared
        self.size = window_size(self.ram)
        self._name = config.name
        self._discard = config.discard_memory
        self._front_end = 0
        self._path_problem = ""
        self._told: frozenset[str] = frozenset()
        make_directory(config.memory_dir)
        with ExitStack() as undo:
            shared = self.ram if config.confined is not None else 0
            opened = left or open_arena(self.path, self.size, config.access, shared)
            self._file = undo.enter_context(opened.file)
            self._had = not opened.is_new
            if opened.is_new:
                undo.callback(self._unlink)
            self._set_owner_and_mode(config)
            self.filesystem = filesystem(self._file)
            self._check_file_system()
            self.file = undo.enter_context(reopen(self._file))
            self._region = self._map_metadata()
            undo.pop_all()

    @classmethod
    def restore_left(cls, config: DeviceConfig, state: ArenaState, left: Left) -> Self:
        """Go on with the arena of a daemon before us.

        Raises:
            StateError: what it has left is not this device's arena.
            HostError: the metadata in it cannot be mapped.
        """
        with ExitStack() as undo:
            file = undo.enter_context(left.fd(state.file))
            check_left(config.arena, file, window_size(config.shared))
            undo.pop_all()
        return cls(config, ArenaFile(file, is_new=not state.had))

    def capture(self, keep: Keep) -> ArenaState:
        """Return what a successor needs to go on with the arena."""
        return ArenaState(keep(self._file), self._had)

    @property
    def metadata(self) -> Metadata:
        """The metadata region."""
        return self._region.metadata

    def _set_owner_and_mode(self, config: DeviceConfig) -> None:
        try:
            # System calls: fchmod.
            os.fchmod(self._file.fileno(), config.access)
            if config.group is not None:
                # System calls: fchown.
                os.fchown(self._file.fileno(), -1, config.group)
        except OSError as error:
            raise explain("give away", self.path, error) from error

    def _check_file_system(self) -> None:
        """Say what the file system makes of our size, before a VM runs into it."""
        if self.filesystem not in _MEMORY_FILESYSTEMS:
            log.warning(
                "%s is on %s: use a tmpfs or hugetlbfs directory (--memory-dir), or "
                "the master's memory is written to disk",
                self.path,
                self.filesystem,
            )
        if self.filesystem == "hugetlbfs":
            self._check_huge_pages(self._page())

    def _page(self) -> int:
        # System calls: fstatfs.
        return os.statvfs(self._file.fileno()).f_bsize

    def _check_huge_pages(self, page: int) -> None:
        confined = self.config.confined is not None
        if self.ram % page:
            what = "a shared region" if confined else "memory"
            raise HostError(
                f"{what} of {self.ram >> 20}M is no multiple of the huge page of "
                f"{page >> 20}M in {self.path.parent}: choose one",
                code="H117",
            )
        best = self.size - page
        # The size of a shared region is not for the user to choose.
        if self.ram != best and not confined:
            log.warning(
                "the slave reserves huge pages for the whole %d MiB of %s, the master "
                "uses %d MiB: --memory %dM or %dM wastes none",
                self.size >> 20,
                self.path,
                self.ram >> 20,
                best >> 20,
                (self.size >> 1) - page >> 20,
            )

    def _map_metadata(self) -> ArenaMetadata:
        # Only on hugetlbfs is a page larger than the metadata.
        page = self._page() if self.filesystem == "hugetlbfs" else 0
        try:
            return ArenaMetadata(
                *(self.path, self._file),
                size=self.size,
                ram=self.ram,
                page=page,
                confined=self.config.confined is not None,
            )
        except OSError as error:
            raise explain("map the metadata of", self.path, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """Read from the file; what was cut off from it is missing."""
        return os.pread(self._file.fileno(), size, offset)

    def restore(self, *, sizes: bool = True) -> str:
        """Make the metadata whole if another process has damaged it.

        What was cut from the file is lost, the metadata with it: it lies in the file's
        last 64 KiB.
        """
        return self._region.restore(sizes=sizes)

    # The room that it takes.

    def promise(self) -> Promise | None:
        """Return what it may still take of its file system."""
        # Of hugetlbfs a QEMU reserves what it maps, or does not start.
        if self.filesystem == "hugetlbfs":
            return None
        directory, fd = self.path.parent, self._file.fileno()
        return promise(self._name, directory, fd, self.ram)

    def reservation(self) -> Generator[Callable[[], None], None, None]:
        """Yield steps that together take memory for all of the master's RAM.

        A step may be called in another thread, and raises HostError if there is no
        space left.
        """
        # A copy: the arena may be closed while a step runs.
        with self._file.copy() as file:
            for offset in range(0, self.ram, PIECE):
                length = min(PIECE, self.ram - offset)
                yield partial(reserve, self.path, file, offset, length)

    # The front-end that has it.

    def windows(
        self, pid: int, for_vm: Callable[[], bool], *, known: bool = False
    ) -> "ArenaWindows":
        """Return the windows of a front-end of process `pid`; any slave can have us."""
        # From now on there is a VM whose RAM this may be: see `close`.
        self._had, self._front_end = True, pid
        self._region.front_end_connected(pid, known=known)
        return ArenaWindows(self, pid)

    def check_usable(self) -> None:
        """Check that the arena can be a master's memory at present.

        Raises:
            ProtocolError: a master has it that has more RAM than the device.
        """
        if self._region.problem:
            raise ProtocolError(
                self._region.problem, code=code_of(self._region.problem)
            )

    def region_accepted(self) -> None:
        """Note that a region of the front-end's memory ends before the metadata."""
        self._region.region_accepted()

    def region_reaches_in(self) -> None:
        """Note that a region of the front-end's memory reaches into the metadata."""
        self._region.region_reaches_in()

    def check(self, placed: PlacedRegion) -> None:
        """Check a region that was placed by a daemon before us.

        Raises:
            ProtocolError: it is not in the arena, or reaches into the metadata.
        """
        at, end = placed.region.mmap_offset, self.size - md.SIZE
        place = placed.window, placed.offset
        if place != (md.SLAVE_ID, at) or at > end or placed.region.size > end - at:
            raise ProtocolError(
                f"the memory at {placed} is not in {self.path}", code="P030"
            )
        if self.config.confined is not None:
            confined.check_region(placed.region, self.config)
        self.check_usable()
        self.region_accepted()

    def drop_windows_except(self, numbers: frozenset[int]) -> None:
        """There is window 0 only, and it stays."""

    # What went wrong with the file.

    @property
    def problem(self) -> str:
        """What is wrong with the file at present; empty if nothing is."""
        return self._region.problem or self._path_problem

    def new_problems(self, *, names: bool = True) -> list[str]:
        """Return what is wrong with the file and was not told yet.

        Args:
            names: whether the file may have lost its name since the last time.

        Raises:
            HostError: it was removed, and there is no master for whom to go on.
        """
        if names or self._path_problem:
            self._check_path()
        if not self.problem and not self._told:
            return []
        now = frozenset(filter(None, (self._region.problem, self._path_problem)))
        new, self._told = now - self._told, now
        return sorted(new)

    def _check_path(self) -> None:
        """See whether the arena still has its name, and give it back if we can."""
        if not lost_name(self.path, self._file):
            self._path_problem = ""
            return
        what = "replaced" if self.path.exists() else "removed"
        if what == "removed" and link_again(self.path, self._file):
            log.warning(
                "%s: %s was moved away; it is there again", self._name, self.path
            )
            self._path_problem = ""
            return
        self._path_problem = (
            f"another process has {what} the arena {self.path}: a master that has it "
            "goes on, but a daemon that is started later cannot serve it: restart both "
            "at a good time, and keep the arena where no one cleans up (RemoveIPC=no "
            "in logind.conf, or a separate tmpfs for --memory-dir)"
        )
        if not is_alive(self._front_end):
            raise HostError(
                f"another process has {what} the arena {self.path}, and no master has "
                "it: the device has to be made again, since a master that starts now "
                "would have another file",
                code="H118",
            )

    def describe(self) -> dict[str, Any]:
        """Return the device's memory for the status."""
        return {
            "size": self.ram,
            "window": self.size,
            "path": str(self.path),
            "filesystem": self.filesystem,
            "file": file_number(self.file),
            "problem": self.problem or None,
        }

    # Its end.

    def discard(self) -> None:
        """Remove the file at `close`, even if a master has had it."""
        self._discard = True

    def close(self) -> None:
        """Close the file; remove it unless a master may still have it as its RAM."""
        # A file with more RAM in it than ours can never be used again.
        keep = self._had and not self._discard and not self._region.problem
        self._region.close()
        if not keep:
            self._remove()
        elif names(self.path, self._file):
            log.info(
                "%s: %s stays, since a master has had it; the next daemon uses it "
                "again (--discard-memory or `remove` would remove it)",
                self._name,
                self.path,
            )
        self.file.close()
        # The lock belongs to the open file, which a keeper may have for a moment more.
        unlock(self._file)
        self._file.close()

    def _remove(self) -> None:
        try:
            self._unlink()
        except OSError as error:
            # The rest must be closed all the same.
            log.warning(
                "%s: cannot remove %s: %s; remove it, or its memory stays taken",
                self._name,
                self.path,
                error.strerror,
            )

    def _unlink(self) -> None:
        # What is not our file any more is not ours to remove.
        # System calls: unlink.
        if names(self.path, self._file):
            self.path.unlink()


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
        if is_memory_file(arena.file) and not is_memory_file(fd):
            raise self._not_the_arena(region, fd)
        ours, theirs = os.fstat(arena.file.fileno()), os.fstat(fd.fileno())
        if not os.path.samestat(ours, theirs):
            raise self._not_the_arena(region, fd)
        arena.check_usable()
        end = arena.size - md.SIZE
        if region.mmap_offset > end or region.size > end - region.mmap_offset:
            arena.region_reaches_in()
            raise ProtocolError(
                f"the memory at {region.guest_addr:#x} reaches into the metadata, the "
                f"last {md.SIZE:#x} bytes of {arena.path}; start the master with "
                f"{self._argument()}",
                code="P031",
            )
        if arena.config.confined is not None:
            confined.check_region(region, arena.config)
        if mapped_private(self._pid, ours):
            raise ProtocolError(
                f"the master (pid {self._pid}) maps the arena {arena.path} privately, "
                f"so no packet would ever arrive; start it with {self._argument()}",
                code="P032",
            )
        arena.region_accepted()
        return PlacedRegion(region, window=0, offset=region.mmap_offset)

    def _not_the_arena(self, region: MemRegion, fd: Fd) -> ProtocolError:
        """Return the refusal of a file, which says what to change."""
        path = self._arena.path
        what = f"the memory at {region.guest_addr:#x} ({region.size:#x} bytes)"
        # The kernel's own name for the file, of which it knows that it was removed.
        if os.readlink(f"/proc/self/fd/{fd.fileno()}") == (
            f"{os.path.realpath(path)} (deleted)"
        ):
            return ProtocolError(
                f"{what} is the file that was {path} before: it was removed, and "
                "cannot come back; restart the master, which then takes the present "
                "one",
                code="P033",
            )
        if self._arena.config.confined is not None:
            return ProtocolError(
                f"{what} is not the shared region {path}: {confined.PRIVATE}, and a "
                "master can have one confined device with an arena; start the master "
                f"with {self._argument()}",
                code="P080",
            )
        return ProtocolError(
            f"{what} is not the arena {path}; start the master with "
            f"{self._argument()}, and with no other memory device",
            code="P034",
        )

    def read(self, window: int, offset: int, size: int) -> bytes:
        """Read from window 0, the only one."""
        return self._arena.read(offset, size)

    def _argument(self) -> str:
        arena = self._arena
        if arena.config.confined is not None:
            return confined.layout(arena.config)
        return (
            "-machine memory-backend=MEM -object memory-backend-file,id=MEM,"
            f"size={arena.ram >> 20}M,mem-path={arena.path},share=on"
        )
