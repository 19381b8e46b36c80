# SPDX-License-Identifier: Apache-2.0
"""Numbers of the metadata region that its entries do not need to be read for.

They are apart from `metadata.py`, which has them, too: making the classes of its
entries takes longer than all other work of a short command.
"""

SIZE = 0x10000
MAX_RINGS = 64
# IVPosition of the slave's ivshmem device with window 0; its agent is ivshmem peer 0.
SLAVE_ID = 0
# Numbers of the further windows.  A window's number is the IVPosition of the ivshmem
# device that shows it, and 65535 is the highest one that the ivshmem protocol has.
# Numbers below 256 are left to window 0 and to the peers that have no window.
FIRST_WINDOW, LAST_WINDOW = 256, 65535
# The slave's interrupt vector for a kick of ring 0; ring i has this number plus i.
FIRST_KICK_VECTOR = 1
