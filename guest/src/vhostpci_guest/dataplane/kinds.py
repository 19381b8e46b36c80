# SPDX-License-Identifier: Apache-2.0
"""The data planes, by the names that the user knows.

`cli/run_options.py` imports this file, so it imports nothing of the data plane.
"""

AUTO = "auto"
"""The one that is best here, with the reason in `WHY_RING`."""
RING = "ring"
VHOST_NET = "vhost-net"
"""The kernel of the slave."""
VHOST_USER = "vhost-user"
"""Another process: a back-end of vhost-user."""

WHY_RING = "auto: it checks each session when it uses a ring, which vhost-net does not"
"""Why the automatic choice is the ring driver, also where there is vhost-net."""
