# SPDX-License-Identifier: Apache-2.0
"""How many daemons have ended before they were ready, where the keeper counts none.

What an earlier daemon has left may end each successor, by an error of ours.  Our own
keeper starts the third one without it; systemd would go on without end.  So a successor
of systemd's writes into a file, which is kept as well, that it tries, and that it is
ready.
"""

import logging
import os
import stat

from ..fds import Fd
from .notices import USELESS
from .store import ATTEMPTS, DescriptorStore, names_of

log = logging.getLogger(__name__)


class Attempts:
    """Counts the daemons that try to go on.

    Args:
        store: has the count, and what they try to go on with.
    """

    def __init__(self, store: DescriptorStore) -> None:
        # System calls: memfd_create.
        self._file = _left(store) or Fd(os.memfd_create("attempts", os.MFD_CLOEXEC))
        self._before = _read(self._file)
        if self._before >= USELESS:
            log.error(
                "%d daemons have ended before they were ready: what was left to them "
                "is not used, and each master connects again",
                self._before,
            )
            store.drop_left()
        store.hold(self._file, ATTEMPTS)
        self._write(self._before + 1)

    def ready(self) -> None:
        """Note that this daemon serves."""
        self._write(0)

    def explained(self) -> None:
        """Note that this daemon ends for a reason that is not in what was left."""
        self._write(self._before)

    def close(self) -> None:
        """Close the file, which stays with the keeper."""
        self._file.close()

    def _write(self, count: int) -> None:
        # One byte, so that a daemon that is killed has written it or not.
        # System calls: pwrite64.
        os.pwrite(self._file.fileno(), bytes([min(count, 255)]), 0)


def _left(store: DescriptorStore) -> Fd | None:
    """Return the file that an earlier daemon has left; None if it is no file."""
    # System calls: fstat.
    for name in names_of(store.left, ATTEMPTS):
        if stat.S_ISREG(os.fstat(store.left[name].fileno()).st_mode):
            return store.left[name].copy()
    return None


def _read(file: Fd) -> int:
    # System calls: pread64.
    data = os.pread(file.fileno(), 1, 0)
    return data[0] if data else 0
