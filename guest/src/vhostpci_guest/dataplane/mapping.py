# SPDX-License-Identifier: Apache-2.0
"""Maps the memory of a device into this process, with a guard against its loss."""

import ctypes
import mmap

from .native import Guard


class Mapping:
    """A shared and writable mapping of a device's memory.

    If the file shrinks, or the device is unplugged, the guard puts zeros in the place
    of the memory, and `lost` is set.

    Args:
        fd: the file to map; it may be closed afterwards.
        size: bytes.
        offset: where in `fd` to start, a multiple of the page size.
        skip: bytes at the start of the first page that belong to another device.

    Raises:
        OSError: the kernel does not map the file.
    """

    def __init__(self, fd: int, size: int, *, offset: int = 0, skip: int = 0) -> None:
        self._mmap = mmap.mmap(fd, size, offset=offset)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))
        self.address = base + skip
        self.view = memoryview(self._mmap)
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
