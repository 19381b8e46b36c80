# SPDX-License-Identifier: Apache-2.0
"""Attach mode: the master brings its memory files, and each of them becomes a window.

    window 0      a small memfd of the daemon's: the metadata, nothing else
    window 4711   a memory file of the master's: memfd, DIMM, NUMA node, huge pages
    window 4712   another memory file of the master's

A file is identified by st_dev, st_ino and st_size.  A region that is sent again, in any
message and over any connection, therefore keeps its window.  A file that has grown
(DPDK's heap grows in its file) becomes a new window, because the slave has mapped the
old window with the old size.

A window's number is the IVPosition of the ivshmem function that shows it.  It is unique
in this daemon, and the first number is random, so that two daemons that serve one slave
VM rarely choose the same number (if they do, the agent reports it).

The daemon maps none of the master's files.  It reads a ring's index with pread(), which
returns fewer bytes where a file was cut and raises no SIGBUS.
"""

import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any, Self

from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from .. import sealed_memfd
from ..config.device import DeviceConfig
from ..errors import HostError
from ..fds import Fd, file_number
from ..keeper.shelf import Left
from ..keeper.slots import StateError
from ..keeper.store import Keep
from . import confined
from .filesystems import MEMORY_FILES, filesystem, is_memory_file
from .kept import AttachedState, FileState
from .process_maps import mapped_private
from .regions import PlacedRegion, WindowFile


class WindowIds:
    """Gives out the window numbers of one daemon.

    Args:
        first: the first number to give out; None chooses a random one.
    """

    def __init__(self, first: int | None = None) -> None:
        self._next = first or random.randint(md.FIRST_WINDOW, md.LAST_WINDOW)
        self._used: set[int] = set()

    def new(self) -> int:
        """Return a free number, the one that has been free for the longest time.

        Raises:
            HostError: all numbers are in use.
        """
        # Go on counting instead of taking the lowest free number: a slave that is
        # slow to drop a window must not take the next window for the old one.
        for _ in range(md.FIRST_WINDOW, md.LAST_WINDOW + 1):
            number = self._next
            self._next = _after(number)
            if number not in self._used:
                self._used.add(number)
                return number
        raise HostError(
            f"all {len(self._used)} windows are in use: remove a device", code="H130"
        )

    def take(self, number: int) -> None:
        """Take a number that a daemon before us has given out.

        Raises:
            StateError: it is no window's number, or is taken.
        """
        if not md.FIRST_WINDOW <= number <= md.LAST_WINDOW or number in self._used:
            raise StateError(f"window {number} cannot be, or is there twice")
        self._used.add(number)
        # Those that follow are the ones that have been free for the longest time.
        self._next = _after(number)

    def free(self, number: int) -> None:
        """Allow `new` to give out this number again."""
        self._used.discard(number)


def _after(number: int) -> int:
    return number + 1 if number < md.LAST_WINDOW else md.FIRST_WINDOW


class AttachedMemory:
    """The windows of one device in attach mode: its metadata, and the master's files.

    This is a `Store`.

    Args:
        config: the device's configuration.
        ids: gives out the windows' numbers.
        left: the metadata's memfd, if a daemon before us has left one.

    Raises:
        HostError: the kernel has no memory for the metadata.
    """

    size = md.SIZE

    def __init__(
        self, config: DeviceConfig, ids: WindowIds, left: Fd | None = None
    ) -> None:
        self.config = config
        self.files: dict[int, WindowFile] = {}
        self._ids = ids
        self._reported_cuts: set[int] = set()
        with ExitStack() as undo:
            try:
                made = left or _sealed_memfd(f"vhostpci-{config.name}")
                self.file = undo.enter_context(made)
                self._map = mmap.mmap(self.file.fileno(), md.SIZE)
            except OSError as error:
                text = f"cannot make and map the metadata: {error.strerror}"
                raise HostError(text, code="H131") from error
            undo.pop_all()
        self.metadata = access.Metadata(memoryview(self._map))

    @classmethod
    def restore_left(
        cls, config: DeviceConfig, ids: WindowIds, state: AttachedState, left: Left
    ) -> Self:
        """Go on with the memory of a daemon before us.

        Raises:
            StateError: a file is missing, or is not what it was.
        """
        with ExitStack() as undo:
            metadata = undo.enter_context(left.fd(state.metadata))
            if problem := sealed_memfd.problem(metadata, md.SIZE):
                raise StateError(f"the metadata: {problem}")
            undo.pop_all()
        with ExitStack() as undo:
            store = cls(config, ids, metadata)
            undo.callback(store.close)
            for one in state.files:
                store._restore_file(one, left)
            undo.pop_all()
        return store

    def _restore_file(self, state: FileState, left: Left) -> None:
        with ExitStack() as undo:
            file = undo.enter_context(left.fd(state.file))
            if not is_memory_file(file):
                raise StateError(f"window {state.number} is no memory file")
            info = os.fstat(file.fileno())
            self._ids.take(state.number)
            undo.pop_all()
        # A file that was cut since then is still this window: `new_problems` says so.
        key = info.st_dev, info.st_ino, state.size
        self.files[state.number] = WindowFile(file, state.size, key)

    def capture(self, keep: Keep) -> AttachedState:
        """Return what a successor needs to go on with these files."""
        files = tuple(
            FileState(number, window.size, keep(window.file))
            for number, window in sorted(self.files.items())
        )
        return AttachedState(keep(self.file), files)

    def windows(
        self, pid: int, for_vm: Callable[[], bool], *, known: bool = False
    ) -> "AttachedWindows":
        """Return the windows of a front-end of process `pid`."""
        return AttachedWindows(self, pid, for_vm)

    def window(self, key: tuple[int, int, int]) -> int | None:
        """Return the number of the window with this file key, None if there is none."""
        return next((n for n, file in self.files.items() if file.key == key), None)

    def add(self, fd: Fd, info: os.stat_result) -> int:
        """Make a window of a file, and return the window's number.

        Raises:
            HostError: all window numbers are in use.
        """
        with ExitStack() as undo:
            # A descriptor of our own keeps the inode allocated: else the kernel could
            # give its number to another file, which we would take for this one.
            file = undo.enter_context(fd.copy())
            number = self._ids.new()
            undo.pop_all()
        self.files[number] = WindowFile(file, info.st_size, _file_key(info))
        return number

    def check(self, placed: PlacedRegion) -> None:
        """Check a region that was placed by a daemon before us.

        Raises:
            ProtocolError: it does not lie in one of the windows.
        """
        window = self.files.get(placed.window)
        at = placed.region.mmap_offset
        size = 0 if window is None or placed.offset != at else window.size
        if at > size or placed.region.size > size - at:
            raise ProtocolError(f"the memory at {placed} is in no window", code="P035")
        if self.config.confined is not None:
            confined.check_file(placed.region, size, self.config)

    def drop_windows_except(self, numbers: frozenset[int]) -> None:
        """Close the files of all windows except `numbers`, and free their numbers."""
        for number in self.files.keys() - numbers:
            self.files.pop(number).file.close()
            self._ids.free(number)
            self._reported_cuts.discard(number)

    def restore(self, *, sizes: bool = True) -> str:
        """Return nothing: window 0 is sealed, so no process can cut it."""
        return ""

    def promise(self) -> None:
        """Return None: the master's memory is its own to find room for."""

    def reservation(self) -> Generator[Callable[[], None], None, None]:
        """Yield no steps: the master's memory is its own."""
        yield from ()

    def discard(self) -> None:
        """There is nothing that stays when we are closed."""

    def new_problems(self, *, names: bool = True) -> list[str]:
        """Return a message for each of the master's files that was cut, once each.

        Args:
            names: ignored, since our files have none.
        """
        found = []
        for number in sorted(self.files.keys() - self._reported_cuts):
            window = self.files[number]
            size = os.fstat(window.file.fileno()).st_size
            if size < window.size:
                self._reported_cuts.add(number)
                found.append(
                    f"the memory file of window {number} was cut from {window.size} to "
                    f"{size} bytes: what lies there is lost, and rings that need it "
                    "are dead: restart the master"
                )
        return found

    def describe(self) -> dict[str, Any]:
        """Return the device's memory for the status."""
        return {
            "size": 0,
            "window": self.size,
            "path": None,
            "filesystem": "memfd",
            "file": file_number(self.file),
            "problem": None,
        }

    def close(self) -> None:
        """Close all files, and unmap the metadata."""
        self.drop_windows_except(frozenset())
        self.metadata.release()
        self._map.close()
        self.file.close()


class AttachedWindows:
    """Places the regions of one front-end in windows.

    Args:
        store: the device's windows.
        pid: the front-end's process, whose mappings are checked for MAP_PRIVATE.
        for_vm: returns whether the slave is a VM, which needs sizes of a power of two.
    """

    def __init__(
        self, store: AttachedMemory, pid: int, for_vm: Callable[[], bool]
    ) -> None:
        self._store = store
        self._pid = pid
        self._for_vm = for_vm

    def place(self, region: MemRegion, fd: Fd) -> PlacedRegion:
        """Find or make the window of the region's file.

        Raises:
            ProtocolError: the slave cannot map the region; the text says what to
                change.
        """
        # Before any other look at the file: fstat() may wait for its file system.
        _check_memory_file(region, fd)
        info = os.fstat(fd.fileno())
        if self._store.config.confined is not None:
            confined.check_file(region, info.st_size, self._store.config)
        number = self._store.window(_file_key(info))
        size = (
            self._check_new_file(region, fd, info) if number is None else info.st_size
        )
        # Subtract instead of adding: both numbers come from the front-end.
        if region.mmap_offset > size or region.size > size - region.mmap_offset:
            raise ProtocolError(
                f"{_describe(region)} reaches beyond the end of its file, which has "
                f"{size:#x} bytes",
                code="P036",
            )
        self._check_bar(region, info)
        if number is None:
            try:
                number = self._store.add(fd, info)
            except HostError as error:
                raise ProtocolError(str(error), code=error.code) from error
        return PlacedRegion(region, window=number, offset=region.mmap_offset)

    def _check_new_file(self, region: MemRegion, fd: Fd, info: os.stat_result) -> int:
        """Check that the slave can use a file without a window; return its size."""
        # A directory on tmpfs is no memory file either, but has the seals of one.
        if not stat.S_ISREG(info.st_mode):
            raise _no_memory_file(region, fd)
        if fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise ProtocolError(
                f"{_describe(region)} came with a file that may not be written: the "
                "slave could put no packet there",
                code="P037",
            )
        if mapped_private(self._pid, info):
            raise ProtocolError(
                f"the master (pid {self._pid}) maps {_describe(region)} privately, so "
                "no packet would ever arrive; start it with memory that is shared: "
                "share=on (QEMU), <access mode='shared'/> (libvirt)",
                code="P038",
            )
        return info.st_size

    def _check_bar(self, region: MemRegion, info: os.stat_result) -> None:
        """Refuse a file whose size would abort the QEMU of a slave VM."""
        # QEMU asserts is_power_of_2(size) in pci_register_bar.
        size = info.st_size
        if size.bit_count() != 1 and self._for_vm():
            raise ProtocolError(
                f"{_describe(region)} is in a file of {size} bytes ({size / 2**20:g} "
                "MiB), and a slave VM's window is a PCI BAR, which is a power of two: "
                f"give the master's memory backend size={_round_up(size) >> 20}M, use "
                "--mode arena, or serve it by a process (vhostpci-guest run --socket)",
                code="P039",
            )

    def read(self, window: int, offset: int, size: int) -> bytes:
        """Read from a window; return fewer bytes where its file was cut."""
        return os.pread(self._store.files[window].file.fileno(), size, offset)


def _check_memory_file(region: MemRegion, fd: Fd) -> None:
    """Refuse a file whose file system could make us wait.

    Raises:
        ProtocolError: it is no memory file.
    """
    if not is_memory_file(fd):
        raise _no_memory_file(region, fd)


def _no_memory_file(region: MemRegion, fd: Fd) -> ProtocolError:
    return ProtocolError(
        f"{_describe(region)} is in no memory file, but in one on {filesystem(fd)}: "
        f"start the master with memory that is {MEMORY_FILES} "
        "(-object memory-backend-memfd,share=on)",
        code="P040",
    )


def _sealed_memfd(name: str) -> Fd:
    try:
        # Sealed: a slave process could cut window 0, and our access to the metadata
        # would end in SIGBUS.  The kernel refuses a name of more than 249 bytes.
        return sealed_memfd.make(name[:200], md.SIZE)
    except OSError as error:
        raise HostError(
            f"cannot create the memfd {name} for the metadata: {error.strerror}",
            code="H132",
        ) from error


def _file_key(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_dev, info.st_ino, info.st_size


def _describe(region: MemRegion) -> str:
    return f"the memory at {region.guest_addr:#x} ({region.size:#x} bytes)"


def _round_up(size: int) -> int:
    return 1 << (size - 1).bit_length()
