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
    # The metadata's seqlock is read and written from Python, which has no memory
    # barriers, so its order is that of the processor's own loads and stores
    # (vhostpci_shared/access.py).  On aarch64 the daemon and the agent could each see
    # the other's stores in another order, and two could use one ring.
    if machine != MACHINE:
        raise Unusable(
            f"this machine is {machine}; the agent runs on x86-64 only, because it "
            "relies on that processor's order of loads and stores: use an x86-64 slave"
        )
    # A 32-bit process has too few addresses for the windows, and writes the metadata's
    # 64-bit words in two halves.
    if sys.maxsize < 2**32:
        raise Unusable(
            "this Python is a 32-bit program; the agent needs a 64-bit Python, which "
            "stores a 64-bit word at once"
        )
