# SPDX-License-Identifier: Apache-2.0
"""Which numbers the descriptors have that a successor inherits.

The keeper imports this module, which imports nothing of ours.
"""

import fcntl
import os
from collections.abc import Sequence


def give_numbers(fds: Sequence[int], first: int) -> None:
    """Give these descriptors the numbers from `first` on; a program executed has them.

    There is never more than one more: with twice as many, the limit would be reached
    when half of it is used.
    """
    # What still has to be placed has a higher number than what is: it was moved away
    # from each of those.  So there is room above as long as one number was free.
    wanted = dict(enumerate(fds, start=first))
    places = {fd: place for place, fd in wanted.items()}
    for place in wanted:
        fd = wanted[place]
        del places[fd]
        if fd == place:
            os.set_inheritable(fd, True)
            continue
        if place in places:
            moved = fcntl.fcntl(place, fcntl.F_DUPFD_CLOEXEC, place)
            places[moved] = places.pop(place)
            wanted[places[moved]] = moved
        os.dup2(fd, place)
        os.close(fd)
