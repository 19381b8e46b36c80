# SPDX-License-Identifier: Apache-2.0
"""What a device had counted when `vhostpci-guest stats --clear` was used.

The counters themselves go on: others read them, too, as a metrics collector that must
never see one fall.  The agent keeps what to subtract, so it is the same for all who
ask, and is gone when the counters are.
"""

import time
from typing import Any


def cleared(status: dict[str, Any]) -> dict[str, Any]:
    """Return what to subtract from now on, by a device's status."""
    keys = status.keys() & {"totals", "tap_dropped"}
    rings = [{"ring": one["ring"], "stats": one["stats"]} for one in status["rings"]]
    counted: dict[str, Any] = {key: status[key] for key in keys}
    return {"at": round(time.time(), 1), "rings": rings, **counted}
