# SPDX-License-Identifier: Apache-2.0
"""The C thread that passes signals on from one notifier to another.

This is the only module that imports ``_relay``, which is missing where no compiler was
there when this package was installed: then its import is an ImportError.
`relay/relay.c` has the theory of operation.
"""

import logging
import os

from ._relay import ffi, lib

log = logging.getLogger(__name__)

MAX_RELAYS = lib.RELAY_MAX


class RelayThread:
    """The relays of this process, and the thread that works them.

    A relay has its own descriptors.  An eventfd that another process has made blocking,
    or signals without end, delays no other relay for long.

    Raises:
        OSError: the machine has no thread or no descriptor for it.
    """

    def __init__(self) -> None:
        made = ffi.new("struct relay_thread **")
        _check(lib.relay_create(made))
        self._thread = made[0]
        self._ended = False
        if lib.relay_may_wait(self._thread):
            log.warning(
                "kicks are relayed by plain writes, so that a hostile front-end or "
                "slave could stop all relays: no asynchronous reads (io_setup); see "
                "sysctl fs.aio-max-nr, and what confines this process"
            )

    def add(self, source: int, target: int, *, target_is_eventfd: bool) -> int:
        """Pass on the signals of `source` from now on; return the relay's number.

        Raises:
            OSError: there is no descriptor for it, or `source` cannot be waited for.
        """
        self._require_open()
        return _check(lib.relay_add(self._thread, source, target, target_is_eventfd))

    def remove(self, number: int) -> tuple[int, int]:
        """Pass on what has come, and end the relay.

        Returns:
            How often it has passed signals on; and the errno with which its source
            ended (EPIPE: the end of a pipe), or 0.
        """
        self._require_open()
        count, error = ffi.new("uint64_t *"), ffi.new("int32_t *")
        _check(lib.relay_remove(self._thread, number, count, error))
        return count[0], error[0]

    def count(self, number: int) -> int:
        """Return how often a relay has passed signals on."""
        self._require_open()
        return lib.relay_count(self._thread, number)

    def close(self) -> None:
        """Remove all relays, and end the thread; a second time does nothing."""
        if not self._ended:
            _check(lib.relay_destroy(self._thread))
            self._ended = True

    def _require_open(self) -> None:
        # The C has freed it: a call would corrupt this process.
        if self._ended:
            raise ValueError("the thread of the relays has ended")


def _check(result: int) -> int:
    """Return the result of a C function, or raise OSError for -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
