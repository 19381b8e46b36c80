# SPDX-License-Identifier: Apache-2.0
"""The C thread of all relays, as cffi builds it from relay/relay_api.h.

Every function runs without the GIL and waits for no other process.  Only
relay_thread.py imports this.
"""

from typing import Literal, overload

class _Thread: ...

class _ThreadOut:
    def __getitem__(self, index: int) -> _Thread: ...

class _Number:
    def __getitem__(self, index: int) -> int: ...

class _FFI:
    @overload
    def new(self, cdecl: Literal["struct relay_thread **"]) -> _ThreadOut: ...
    @overload
    def new(self, cdecl: Literal["uint64_t *", "int32_t *"]) -> _Number: ...

class _Lib:
    RELAY_MAX: int

    def relay_create(self, ret: _ThreadOut) -> int:
        """Start the thread."""

    def relay_destroy(self, thread: _Thread) -> int:
        """Remove all relays, end the thread, free everything."""

    def relay_add(
        self, thread: _Thread, source: int, target: int, target_is_eventfd: bool
    ) -> int:
        """Relay from now on.  Returns the relay's number.

        Both descriptors stay the caller's.  -ENOSPC: there are RELAY_MAX relays.
        """

    def relay_remove(
        self, thread: _Thread, number: int, count: _Number, error: _Number
    ) -> int:
        """Pass on what has come, and nothing from then on.

        `error` becomes the errno with which the source ended, or 0.
        """

    def relay_count(self, thread: _Thread, number: int) -> int:
        """Return how often the relay has passed signals on."""

    def relay_may_wait(self, thread: _Thread) -> int:
        """Return 1 if another process can make the thread wait, else 0."""

ffi: _FFI
lib: _Lib
