# SPDX-License-Identifier: Apache-2.0
"""A log that never makes its program wait, whatever becomes of who reads it.

Programs that serve VMs write their log to stderr: a terminal that is stopped by Ctrl-S,
a pipe whose reader hangs, a journal under load.  A write() there may block without end,
and so would each VM that waits for an answer.  Hence a separate thread writes; lines
that it cannot write in time are left out and counted.
"""

import logging
import os
import queue
import select
import threading

from . import quiet_thread

STDERR = 2
MOST = 1000
"""Lines that may wait to be written."""
LAST = 1.0
"""Seconds for the lines that wait when the program ends."""


class LogWriter(logging.Handler):
    """A handler that writes to a descriptor from a separate thread.

    Args:
        fd: where to write; it stays the caller's.
    """

    def __init__(self, fd: int = STDERR) -> None:
        super().__init__()
        self._fd = fd
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._left_out = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Have the thread write a record, or count it if too many wait already."""
        if self._lines.qsize() >= MOST:
            self._left_out += 1
        else:
            self._report_left_out()
            self._lines.put(self._encode(record))
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        # A daemon thread: one that is stuck in write() must not keep the program.
        thread = threading.Thread(target=self._write_all, daemon=True)
        try:
            quiet_thread.start(thread)
        except RuntimeError:
            return  # there is no room for a thread now: the next line tries again
        self._thread = thread

    def _encode(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _report_left_out(self) -> None:
        if self._left_out:
            text = "%d lines of the log are missing here: it was not read in time"
            arguments = (self._left_out,)
            record = logging.LogRecord(
                __name__, logging.WARNING, __file__, 0, text, arguments, None
            )
            self._lines.put(self._encode(record))
            self._left_out = 0

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                _write(self._fd, line)
            except OSError:
                # The reader is gone, or the disk is full: there is no other place to
                # say so, and the program goes on without a log.
                continue

    def rest(self) -> bool:
        """End the thread until there is another line; return whether it has ended.

        What a thread may do is the thread's own: one that was started before its
        process gives rights up would keep them.  `LAST` seconds at most.
        """
        if self._thread is None:
            return True
        self._report_left_out()
        self._lines.put(None)
        self._thread.join(LAST)
        if self._thread.is_alive():
            return False
        self._thread = None
        return True

    def close(self) -> None:
        """Wait for the lines that are not written yet, `LAST` seconds at most.

        If that is not enough, nothing that the program writes there later will block.
        """
        super().close()
        if self._thread is None and not self._lines.empty():
            self._start()
        self.rest()
        # Not only if the thread is stuck: it may never have had anything to write.
        if not _writable(self._fd):
            _discard_output(self._fd)
        self._thread = None


def _write(fd: int, data: bytes) -> None:
    """Write all of `data`, however long that takes."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            # Another process that has the same open file made it non-blocking.
            _writable(fd)


# System calls: dup2, openat.
def _discard_output(fd: int) -> None:
    """Make `fd` a descriptor that swallows everything."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


# System calls: poll.
def _writable(fd: int) -> bool:
    """Wait until a line can be written without blocking: `LAST` seconds at most."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(LAST * 1000))
