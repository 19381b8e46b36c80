# SPDX-License-Identifier: Apache-2.0
"""Signal an eventfd that other processes have, too, without ever waiting.

Theory of operation.  A write to an eventfd waits while the counter is full, unless the
file is non-blocking.  Counter and flag belong to the open file, which all processes
share that have a descriptor of it.  So one of them may fill the counter and clear the
flag between our look and our write, and the loop of all devices would stand still.  (A
read has RWF_NOWAIT for that.  A write has not: Linux 6.18 says EOPNOTSUPP.)

The kernel itself adds to an eventfd, without a wait, when an asynchronous read ends
that names it (io_submit(2), IOCB_FLAG_RESFD).  So we submit a read of no bytes from the
eventfd: it ends at once, with an error at which we do not look, and changes nothing.
"""

import ctypes
import errno
import logging
import os
import platform

log = logging.getLogger(__name__)

# System calls: io_getevents, io_setup, io_submit.
_IO_SETUP, _IO_GETEVENTS, _IO_SUBMIT = 206, 208, 209  # x86-64
_IOCB_CMD_PREAD = 0
_IOCB_FLAG_RESFD = 1
_EVENTS = 64
"""Results that the kernel keeps for us at least, until we take them."""


class _Iocb(ctypes.Structure):
    """`struct iocb` of <linux/aio_abi.h>, on a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fildes", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved2", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class Signaller:
    """Signals eventfds by asynchronous reads; for one thread.

    Raises:
        OSError: this machine has none, or allows us none.
    """

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        self._iocb = _Iocb(opcode=_IOCB_CMD_PREAD, flags=_IOCB_FLAG_RESFD)
        self._iocbs = ctypes.pointer(self._iocb)
        self._results = (ctypes.c_uint64 * 4 * _EVENTS)()  # struct io_event
        self._no_time = (ctypes.c_long * 2)(0, 0)  # struct timespec
        count = ctypes.c_long(_EVENTS)
        self._call(_IO_SETUP, count, ctypes.byref(self._context))

    def signal(self, number: int) -> None:
        """Add one to the eventfd; one whose counter is full stays as it is."""
        self._iocb.fildes = self._iocb.resfd = number
        try:
            self._submit()
        except BlockingIOError:
            # The results fill all of their room, and only then do we look at them: a
            # system call for each signal would be too much.
            self._forget_results()
            self._submit()

    def _submit(self) -> None:
        one = ctypes.c_long(1)
        self._call(_IO_SUBMIT, self._context, one, ctypes.byref(self._iocbs))

    def _forget_results(self) -> None:
        least, most = ctypes.c_long(0), ctypes.c_long(_EVENTS)
        results, no_time = self._results, self._no_time
        self._call(_IO_GETEVENTS, self._context, least, most, results, no_time)

    def _call(self, number: int, *arguments: object) -> None:
        if self._libc.syscall(ctypes.c_long(number), *arguments) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


class _Plain:
    """Signals eventfds by writes, which wait if another process wants them to."""

    def signal(self, number: int) -> None:
        """Add one to the eventfd; one whose counter is full stays as it is."""
        os.set_blocking(number, False)
        try:
            os.eventfd_write(number, 1)
        except BlockingIOError:
            return


_signaller: Signaller | _Plain | None = None


def signal_eventfd(number: int) -> None:
    """Add one to an eventfd, without waiting; call this from one thread only."""
    global _signaller
    if _signaller is None:
        _signaller = _choose()
    _signaller.signal(number)


def _choose() -> Signaller | _Plain:
    try:
        return Signaller()
    except OSError as error:
        log.warning(
            "eventfds are signalled by plain writes, so that a front-end or a slave "
            "that is hostile could stop this process: no asynchronous reads (io_setup: "
            "%s); see sysctl fs.aio-max-nr, and what confines this process",
            error.strerror,
        )
        return _Plain()
