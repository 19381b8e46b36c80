# SPDX-License-Identifier: Apache-2.0
"""The data planes, by the names that the user knows.

`cli/run_options.py` imports this file, so it imports nothing of the data plane.
"""

RING = "ring"
VHOST_NET = "vhost-net"
"""The kernel of the slave."""
VHOST_USER = "vhost-user"
"""Another process: a back-end of vhost-user."""
