# SPDX-License-Identifier: Apache-2.0
"""The host daemon: a vhost-user back-end that shows its master to a slave VM.

Bytes come in through `endpoint`, `daemon` waits, and all else is called and
returns: `backend` (what the master's QEMU asked for), `peers` (whose doorbell is
whose), `memory` and `arena` (where the master's memory is), and `device`, which
adds them up to what the slave sees.
"""

__version__ = "0.1.0"
