# SPDX-License-Identifier: Apache-2.0
"""The data planes, as the agent's option names them.

The demo runs before anything of ours is installed, so this is not the agent's list.
"""

RING = "ring"
VHOST_NET = "vhost-net"
VHOST_USER = "vhost-user"
