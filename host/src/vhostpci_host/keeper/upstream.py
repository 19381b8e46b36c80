# SPDX-License-Identifier: Apache-2.0
"""What the keeper tells the manager that has started it, in the daemon's name.

The keeper imports this module, which imports nothing else of ours but `log_line`.
"""

import socket
from collections.abc import Mapping

from . import log_line


class Upstream:
    """The manager that started the keeper, if it wants to be told of the daemon.

    Args:
        address: of its socket, as in NOTIFY_SOCKET; None without such a manager.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address and address.replace("@", "\0", 1)

    def pass_on(self, said: Mapping[str, str]) -> None:
        """Tell the manager what the daemon has said of itself."""
        names = ("READY", "STATUS", "STOPPING", "WATCHDOG")
        lines = [f"{name}={said[name]}" for name in names if name in said]
        if self._address is None or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
                ours.setblocking(False)
                ours.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log_line.say(f"cannot tell the service manager {lines}: {error.strerror}")
