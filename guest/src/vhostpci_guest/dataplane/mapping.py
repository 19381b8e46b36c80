# SPDX-License-Identifier: Apache-2.0
"""A device's memory in this process, guarded against its loss."""

import ctypes
import mmap

from .native import Guard


class Mapping:
    """Memory of a device in this process, shared and writable.

    It is guarded: if the file shrinks, or the device is unplugged, there are zeros
    instead, and `lost` is set.

    Args:
        fd: what to map; it may be closed afterwards.
        size: bytes.
        offset: where in `fd` to start, a multiple of the page size.
        skip: bytes of the first page that are somebody else's.

    Raises:
        OSError: the kernel does not map it.
    """

    def __init__(self, fd: int, size: int, *, offset: int = 0, skip: int = 0) -> None:
        self._mmap = mmap.mmap(fd, size, offset=offset)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))
        self.address = base + skip
        self.view = memoryview(self._mmap)
        if skip:
            # The kernel maps the page, Python shows no more than the file's size.
            here = (ctypes.c_char * size).from_address(self.address)
            self.view = memoryview(here).cast("B")
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
        """Whether the memory is gone, and there are zeros in its place."""
        return self._guard.lost

    def close(self) -> None:
        """Unmap it.

        Raises:
            BufferError: somebody still has a part of `view`.
        """
        self.view.release()
        self._mmap.close()
        self._guard.close()  # not before: who still has a part may use it
