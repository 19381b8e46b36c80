# SPDX-License-Identifier: Apache-2.0
"""Copies of packets that workers make for `vhostpci-guest pcap`: the agent's side.

Each queue pair has a file of memory, with slots in which the newest packets are
(guest/ring/capture.c).  The command maps it, and can neither cut nor change it.
"""

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from .faults import RingError
from .native import Worker, address_of, c_layout

log = logging.getLogger(__name__)

BYTES = 16 << 20
"""The most memory for the copies of one queue pair."""
MOST_SLOTS = 16384
LONGEST = 65535 + 64
"""Bytes of the longest packet, with its net header."""
_F_SEAL_FUTURE_WRITE = 0x10  # fcntl has no name for it before Python 3.12
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Capture:
    """The copies of one device's packets, until `close`.

    Args:
        workers: those of its queue pairs.
        snaplen: bytes of each packet, with its net header, that are copied at most.

    Raises:
        OSError: the machine has no memory or descriptor for it.
    """

    def __init__(self, workers: Sequence[Worker], snaplen: int) -> None:
        head = c_layout("capture_slot").size
        # A multiple of eight, for the 64-bit words of each slot.
        self._slot_size = (head + min(snaplen, LONGEST) + 7) // 8 * 8
        self._slots = min(MOST_SLOTS, BYTES // self._slot_size)
        self._workers = workers
        self.open = True
        self.fds: list[int] = []
        self._maps: list[mmap.mmap] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for worker in workers:
                worker.capture(self._new(), self._slots, self._slot_size)
            undo.pop_all()

    def _new(self) -> int:
        """Make the memory of one queue pair; return its address."""
        fd = os.memfd_create("vhostpci-pcap", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.fds.append(fd)
        os.ftruncate(fd, self._slots * self._slot_size)
        self._maps.append(mmap.mmap(fd, self._slots * self._slot_size))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        try:
            # Our mapping stays writable.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 5.1
                raise
        return address_of(self._maps[-1])

    def describe(self) -> dict[str, Any]:
        """Return what a reader has to know."""
        return {"slots": self._slots, "slot_size": self._slot_size}

    def close(self) -> None:
        """End the copies, and give their memory back; a second time does nothing."""
        if not self.open:
            return
        self.open = False
        for worker, memory in zip(self._workers, self._maps, strict=False):
            try:
                worker.capture(0, 0, 0)
            except RingError as error:
                # It may still write there: that memory stays until the agent ends.
                log.warning("the memory of a capture is not given back: %s", error)
                _kept.append(memory)
            else:
                memory.close()
        while self.fds:
            os.close(self.fds.pop())


_kept: list[mmap.mmap] = []
"""Memory that a worker may still write to."""
