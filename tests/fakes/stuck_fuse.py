# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system whose file can be opened, and which answers nothing about it.

fstat(), pread() and the like wait until the file system is ended, and then fail.
"""

import ctypes
import errno
import os
import stat
import threading
from pathlib import Path
from struct import Struct
from typing import Self

# <linux/fuse.h>
_IN = Struct("=IIQQIIII")  # struct fuse_in_header
_OUT = Struct("=IiQ")  # struct fuse_out_header
_INIT_OUT = Struct("=IIIIHHIIHHI28x")
_ENTRY_OUT = Struct("=QQQQII" + "QQQQQQIIIIIIIIII")  # with its struct fuse_attr
_OPEN_OUT = Struct("=QII")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _INIT, _INTERRUPT = 1, 2, 3, 14, 15, 26, 36
_UNANSWERED = {_FORGET, _INTERRUPT, _GETATTR, _READ}
_FILE = 2  # its node; the root's is 1
_MNT_FORCE, _MNT_DETACH = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class StuckFuse:
    """The file system, mounted at `place` while the block runs; needs root.

    Args:
        place: an empty directory.
        patience: seconds after which it is ended, so that a test that waits fails.
    """

    def __init__(self, place: Path, patience: float = 10.0) -> None:
        self._place = place
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0"
        if _libc.mount(b"stuck", bytes(place), b"fuse", 0, options.encode()):
            os.close(self._device)
            raise OSError(ctypes.get_errno(), "mount")
        self._server = threading.Thread(target=self._serve)
        self._server.start()
        self._watchdog = threading.Timer(patience, self.end)
        self._watchdog.start()

    def open(self) -> int:
        """Open its one file."""
        return os.open(self._place / "memory", os.O_RDWR | os.O_CLOEXEC)

    def end(self) -> None:
        """End the file system: every call that waits for it fails."""
        _libc.umount2(bytes(self._place), _MNT_FORCE | _MNT_DETACH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.end()
        self._server.join()
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                return  # it has been ended
            _, operation, unique, *_ = _IN.unpack_from(request)
            if operation not in _UNANSWERED:
                self._reply(unique, _answer(operation))

    def _reply(self, unique: int, answer: bytes | None) -> None:
        status, body = (-errno.ENOSYS, b"") if answer is None else (0, answer)
        header = _OUT.pack(_OUT.size + len(body), status, unique)
        try:
            os.write(self._device, header + body)
        except FileNotFoundError:
            return  # the process that asked has stopped waiting


def _answer(operation: int) -> bytes | None:
    """Return the answer to a request; None for one that this system does not know."""
    if operation == _INIT:
        return _INIT_OUT.pack(7, 31, 0, 0, 16, 16, 1 << 16, 1, 0, 0, 0)
    if operation == _LOOKUP:
        # Its attributes are good for 0 seconds: the kernel has to ask each time.
        size, mode = 1 << 20, stat.S_IFREG | 0o600
        attributes = (_FILE, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        return _ENTRY_OUT.pack(_FILE, 0, 0, 0, 0, 0, *attributes)
    if operation == _OPEN:
        return _OPEN_OUT.pack(0, 0, 0)
    return None
