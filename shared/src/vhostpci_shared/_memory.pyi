# SPDX-License-Identifier: Apache-2.0
"""The guards, as cffi builds them from memory/guard_api.h.

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

lib: _Lib
