# SPDX-License-Identifier: Apache-2.0
"""Maps the memory of a device into this process, with a guard against its loss."""

import ctypes
import logging
import mmap

from vhostpci_shared import fixed_map

from .native import Guard

log = logging.getLogger(__name__)

HUGE_PAGE = 2 << 20
"""What one entry of a page directory maps, instead of a page table."""


class Mapping:
    """A shared and writable mapping of a device's memory.

    If the file shrinks, or the device is unplugged, the guard puts zeros in the place
    of the memory, and `lost` is set.

    Args:
        fd: the file to map; it may be closed afterwards.
        size: bytes.
        offset: where in `fd` to start, a multiple of the page size.
        skip: bytes at the start of the first page that belong to another device.
        huge: map it where the kernel can use huge pages, if it is as large as one.

    Raises:
        OSError: the kernel does not map the file.
    """

    def __init__(
        self, fd: int, size: int, *, offset: int = 0, skip: int = 0, huge: bool = False
    ) -> None:
        start = 0
        if huge and not skip and size >= HUGE_PAGE:
            self._mmap, start = _map_aligned(fd, size, offset)
        else:
            self._mmap = mmap.mmap(fd, size, offset=offset)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap)) + start
        self.address = base + skip
        self.view = memoryview(self._mmap)[start : start + size]
        if skip:
            # The kernel maps whole pages, but mmap shows `size` bytes from the first
            # page's start, which ends `skip` bytes too early.  What is built on the
            # address does not count as a use of the mmap: `close` finds no slice of it.
            here = (ctypes.c_char * size).from_address(self.address)
            self.view = memoryview(here).cast("B")
        # Before any access: a BAR can be lost between the mapping and its first read.
        try:
            self._guard = Guard(base, skip + size)
        except BaseException:
            self.view.release()
            self._mmap.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when the memory is lost."""
        return self._guard.fileno()

    @property
    def lost(self) -> bool:
        """Whether the memory is lost, and the mapping holds zeros."""
        return self._guard.lost

    def close(self) -> None:
        """Unmap the memory.

        Raises:
            BufferError: a slice of `view` is still in use.
        """
        self.view.release()
        self._mmap.close()
        # Last: if a slice is in use, a line above raises BufferError, the mapping
        # stays, and an access to it must still survive the loss of the memory.
        self._guard.close()


def _map_aligned(fd: int, size: int, offset: int) -> tuple[mmap.mmap, int]:
    """Map a file at an address that a huge page can have; return where in the mmap.

    The kernel aligns only the mappings of file systems that ask for it, and the nodes
    of UIO and vfio do not.  So a range that is longer by a huge page is reserved, by
    private memory of which nothing is ever used, and the file is mapped in it.
    """
    no_reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_map.MAP_NORESERVE
    try:
        reserved = mmap.mmap(-1, size + HUGE_PAGE, flags=no_reserve)
    except OSError as error:
        # vm.overcommit_memory=2 counts it as memory that may be used.
        log.info(
            "a window of %d bytes is mapped without huge pages: no addresses can be "
            "reserved: %s",
            size,
            error.strerror,
        )
        return mmap.mmap(fd, size, offset=offset), 0
    base = ctypes.addressof(ctypes.c_char.from_buffer(reserved))
    start = -base % HUGE_PAGE
    try:
        fixed_map.map_file(base + start, size, fd, offset)
    except OSError:
        reserved.close()
        raise
    return reserved, start
