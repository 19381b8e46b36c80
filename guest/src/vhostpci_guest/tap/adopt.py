# SPDX-License-Identifier: Apache-2.0
"""Whether a TAP that is there already becomes a device's, as with an earlier agent."""

import logging

from ..errors import Unusable
from . import left
from .requests import Requests
from .tap import Tap

log = logging.getLogger(__name__)


def adopt(
    found: left.LeftTap, wanted: str | None, queues: int, requests: Requests
) -> Tap | None:
    """Attach to a TAP that an agent has left; remove it if it does not serve."""
    several = queues > 1
    fits = fits_name(found.name, wanted) and found.several == several
    if found.several and not fits:
        requests.remove(found.index)
    else:
        try:
            attached = queues if several and found.several else 1
            tap = Tap(found.name, attached, requests=requests)
        except Unusable:
            return None  # another agent has it open
        tap.ours = True
        if fits:
            log.info("TAP %s was left by an earlier agent", tap.name)
            return tap
        tap.close()
    log.info("TAP %s, left by an earlier agent, is removed: it differs", found.name)
    return None


def fits_name(name: str, wanted: str | None) -> bool:
    """Whether a TAP that is there may have the name that the user wants."""
    # A pattern fits any: it says that the name does not matter.
    return wanted is None or "%d" in wanted or name == wanted
