# SPDX-License-Identifier: Apache-2.0
"""The host daemon: a vhost-user back-end that shows its master to a slave VM.

Each folder is one conversation or one decision, and imports only those below it:

- `cli`: the command vhostpci-host.
- `daemon`: the event loop, in which all waiting is done, and the devices by name.
- `device`: what one front-end asks for, and what the agent is shown of it.
- `vhost_user`, `ivshmem`, `hotplug`: the front-end, the slave, a slave VM's monitor.
- `memory`: the master's memory, and the windows that show it.
- `config`: what a device is configured to be.
- `sockets`, `interfaces`, `fds`, `errors`: what all of them use.
"""

__version__ = "0.1.0"
