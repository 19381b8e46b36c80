# SPDX-License-Identifier: Apache-2.0
"""A device's memory, which another process has cut or overwritten."""

import logging
from collections.abc import Callable

from ..interfaces import Loop
from ..memory.regions import Store

log = logging.getLogger(__name__)

QUIET = 60.0
"""Seconds between two lines about a file that is cut again and again."""


class Restoration:
    """Brings a device's memory file back to what it was.

    Args:
        name: the device's.
        store: its memory.
        loop: has the clock.
        restored: is called when the metadata is empty, and must be written again.
    """

    def __init__(
        self, name: str, store: Store, loop: Loop, restored: Callable[[], None]
    ) -> None:
        self._name = name
        self._store = store
        self._loop = loop
        self._restored = restored
        self._quiet_until = 0.0

    def look(self, *, sizes: bool) -> None:
        """Restore what is lost.

        Args:
            sizes: whether to look at the sizes of files, too, by system calls.
        """
        what = self._store.restore(sizes=sizes)
        if not what:
            return
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            log.error("%s: %s; the metadata is written again", self._name, what)
        self._restored()
