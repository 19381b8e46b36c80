# SPDX-License-Identifier: Apache-2.0
"""Guards and barriers, as cffi builds them from memory/guard_api.h and barrier_api.h.

The agent's guards are in its own module, vhostpci_guest._ring, from the same source.
"""

class _Lib:
    def guard_open(self, address: int, size: int, fd: int) -> int:
        """Survive the loss of a mapping.  Returns the guard's number.

        -EINVAL: no mapping can be there; -ENOSPC: there are 4096.
        """

    def guard_close(self, number: int) -> int:
        """Guard a mapping no longer."""

    def guard_lost(self, number: int) -> int:
        """Return 1 if the guarded memory is lost, else 0."""

    def barrier_acquire(self) -> None:
        """Do the loads before this before all that follows."""

    def barrier_release(self) -> None:
        """Let others see the stores before this before later ones."""

    def barrier_full(self) -> None:
        """Let others see the stores before this before any later access."""

lib: _Lib
