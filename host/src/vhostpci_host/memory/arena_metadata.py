# SPDX-License-Identifier: Apache-2.0
"""The metadata at the end of an arena: mapped, made whole, and kept out of a VM's RAM.

Theory of operation.  A user who may open the arena can damage the metadata in it.
There are two kinds of damage, which ask for opposite things:

- *Another process* has cut the file, or has written over the metadata.  The file gets
  its size back, and the metadata is written again.
- *A master* has more RAM than the device, so that its RAM reaches into the metadata.
  Its QEMU lengthens the file if it has to.  What is written there destroys a running
  guest.  So the mapping is taken away from the file, and shows private zero pages,
  until that master has ended.

They are told apart by the file's size, which only a master's QEMU makes larger, by what
the front-end's process maps, and by what its memory table says.
"""

import os
from pathlib import Path

from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared.errors import Said, said

from ..errors import HostError
from ..fds import Fd
from .arena_file import reserve
from .process_maps import is_alive, mapped_end
from .sigbus import GuardedMapping

_WHO = "(who may open it is up to --socket-mode and --socket-group)"


class ArenaMetadata:
    """The metadata of one arena.

    Args:
        path: the arena's.
        file: the arena, which stays the caller's.
        size: its right size.
        ram: bytes of it that are for the master.
        page: its file system's page.
        confined: whether the device is.

    Raises:
        HostError: there is no space left for it.
        OSError: it cannot be mapped.
    """

    def __init__(
        self,
        path: Path,
        file: Fd,
        *,
        size: int,
        ram: int,
        page: int,
        confined: bool = False,
    ) -> None:
        self.problem = ""
        """Why nothing is written into the file at present; empty if it is."""
        self._path, self._file, self._size, self._ram = path, file, size, ram
        self._confined = confined
        self._length = max(page, md.SIZE)
        # The page may begin before the metadata, but no page of the master's RAM does.
        self._start = size - md.SIZE
        self._front_end = 0
        self._fits = False
        self._overlaps = False
        self._intruder = 0
        """The process whose RAM reaches into the metadata; 0 if it is unknown."""
        self._repaired = ""
        self._reserve()
        self._map = GuardedMapping(
            file, offset=size - self._length, length=self._length
        )
        self.metadata = access.Metadata(access.find(self._map.view()))

    def front_end_connected(self, pid: int, *, known: bool = False) -> None:
        """Note who the master is, and see whether its RAM reaches into the metadata.

        Args:
            pid: its process.
            known: whether a daemon before us has taken all of its regions.
        """
        if self.problem:
            # At once, and not with the next tick: a front-end does not send a memory
            # table again that was refused.
            self._repaired = self._try_again(pid)
        self._front_end, self._fits = pid, known
        # With hundreds of masters, to look at each takes longer than all the rest.
        if not known and not self._overlaps and self._reaches_in():
            self._suspend()

    def region_accepted(self) -> None:
        """Note that a region of the front-end's memory ends before the metadata."""
        self._fits = True

    def region_reaches_in(self) -> None:
        """Note that a region of the front-end's memory reaches into the metadata."""
        # Of an unknown process we would never learn that it has ended.
        if self._overlaps or not self._front_end:
            return
        # 0: it says so, but does not map what it says.
        if self._mapped_end(self._front_end) != 0:
            self._fits = False
            self._suspend()

    def restore(self, *, sizes: bool) -> str:
        """Make the metadata whole, if it is damaged and no master's RAM.

        Args:
            sizes: ask the kernel for the file's size, too.  Without that, damage is
                seen by the lost metadata, unless a cut took less than a page.

        Returns:
            What happened, if the metadata is to be written again.
        """
        if self._repaired:
            what, self._repaired = self._repaired, ""
            return what
        if self.problem:
            return self._try_again(self._front_end) if sizes else ""
        # Look at the metadata first: if the file is too short for it, that look is a
        # bus error, which marks the mapping as lost (sigbus.py).
        intact = self.metadata.formatted() and not self._map.lost
        if intact and not sizes:
            return ""
        now = os.fstat(self._file.fileno()).st_size
        if now < self._size:
            return self._write_again(
                f"another process cut {self._path}, and what was cut is lost {_WHO}"
            )
        if intact and now == self._size:
            return ""
        if now > self._size or self._may_reach_in(self._front_end):
            self._suspend()
            return ""
        return self._write_again(
            f"another process wrote over the end of {self._path} {_WHO}"
        )

    def close(self) -> None:
        """Unmap it."""
        self.metadata.release()
        self._map.close()

    def _write_again(self, what: str) -> str:
        """Make the file whole, and map it; return `what`, or "" if that fails."""
        if os.fstat(self._file.fileno()).st_size != self._size:
            # System calls: ftruncate.
            os.ftruncate(self._file.fileno(), self._size)
        try:
            # Before the mapping is used: with no space left, each store into it would
            # be a bus error.
            self._reserve()
        except HostError as error:
            self._map.replace_with_zeros()
            self.problem = said(error)
            return ""
        self.problem = ""
        if self._map.lost:
            self._map.map_again()
        return what

    def _reserve(self) -> None:
        reserve(self._path, self._file, self._size - self._length, self._length)

    def _suspend(self) -> None:
        """Take the mapping away from the file: a master's RAM is there."""
        if not self._map.replace_with_zeros():
            raise HostError(
                f"cannot stop writing into {self._path}, a master's RAM", code="H129"
            )
        self._overlaps, self._intruder = True, self._front_end
        # A QEMU that we may not look at has at least what it has made of the file.
        end = self._mapped_end(self._intruder) or os.fstat(self._file.fileno()).st_size
        more, advice = (
            "has more RAM than the device",
            (
                f"start it with {self._ram >> 20} MiB, or the device with --memory "
                f"{end >> 20}M"
            ),
        )
        if self._confined:
            more = "shares more than the shared region of this confined device"
            words = f"qemu-args {self._path.name} --role master"
            advice = f"start it with the memory of `vhostpci-host {words}`"
        self.problem = Said(
            f"the master (pid {self._intruder or 'unknown'}) {more}: {end >> 20} MiB "
            f"instead of {self._ram >> 20} MiB, and it lies where the metadata was in "
            f"{self._path}; nothing is written there until that master has ended: "
            f"{advice}",
            code="P029",
        )

    def _try_again(self, front_end: int) -> str:
        """Go on with the file if what was in the way is gone; return what it was."""
        if not self._overlaps:
            return self._write_again(f"{self._path.parent} has space again")
        # A QEMU makes the file longer just before it connects.
        self._intruder = self._intruder or front_end
        if not self._intruder or self._may_reach_in(self._intruder):
            return ""
        self._overlaps = False
        return self._write_again(
            f"the master that had more RAM than {self._path} ended"
        )

    def _reaches_in(self) -> bool:
        """Whether the front-end's RAM is known to reach into the metadata."""
        longer = os.fstat(self._file.fileno()).st_size > self._size
        return longer or bool(self._mapped_end(self._front_end))

    def _may_reach_in(self, pid: int) -> bool:
        """Whether the RAM of process `pid` reaches into the metadata, or may do so.

        Where we may not look at the process, we go by what it has told us.
        """
        if not is_alive(pid):
            return False
        end = self._mapped_end(pid)
        if end is None:
            return not (self._fits and pid == self._front_end)
        return bool(end)

    def _mapped_end(self, pid: int) -> int | None:
        return mapped_end(pid, os.fstat(self._file.fileno()), self._start)
