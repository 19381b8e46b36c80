# SPDX-License-Identifier: Apache-2.0
"""What a device's agent had counted when `vhostpci-host stats --clear` was used.

The agent's counters go on: metrics must never see one fall.  The daemon keeps what to
subtract, for all who ask, as long as it runs.
"""

import time

from ..interfaces import Json

COUNTS = ("packets", "bytes", "drops", "kicks", "calls")


def cleared(status: Json) -> Json:
    """Return what to subtract from now on, by a device's status."""
    return {
        "at": round(time.time(), 1),
        # Another agent begins at 0.
        "instance": status["agent"]["instance"],
        "rings": [
            {name: (ring["agent"] or {}).get(name, 0) for name in COUNTS}
            for ring in status["rings"]
        ],
    }
