# SPDX-License-Identifier: Apache-2.0
"""Checks that the agent can run on this processor.

The check does not need the ring driver in C, which another machine may lack.
"""

import os
import sys

from ..errors import Unusable

MACHINE = "x86_64"
"""What `uname -m` prints on the only architecture that the agent supports."""


def check_machine() -> None:
    """Check that this is a 64-bit process on x86-64.

    Raises:
        Unusable: it is not.
    """
    machine = os.uname().machine
    # The order of loads and stores is no reason: the C has acquire and release, and
    # Python has barriers (vhostpci_shared/barriers.py).  But nothing of the agent was
    # ever run elsewhere, and on aarch64 the kernel maps a BAR as the memory of a
    # device, where an unaligned access of Python's is a SIGBUS.
    if machine != MACHINE:
        raise Unusable(
            f"this machine is {machine}; the agent runs on x86-64 only, and was never "
            "tried on another processor: use an x86-64 slave",
            code="G007",
        )
    # A 32-bit process has too few addresses for the windows, and writes the metadata's
    # 64-bit words in two halves.
    if sys.maxsize < 2**32:
        raise Unusable(
            "this Python is a 32-bit program; the agent needs a 64-bit Python, which "
            "stores a 64-bit word at once",
            code="G008",
        )
