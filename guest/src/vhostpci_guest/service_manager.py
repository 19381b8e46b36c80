# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the service manager that has started it: sd_notify(3).

systemd then knows when the agent serves, and ends one that hangs.
"""

import logging
import math
import os
import socket

log = logging.getLogger(__name__)

ADDRESS = "NOTIFY_SOCKET"
"""The environment variable with the address of its socket."""
PAUSE = 1.0
"""Seconds between two words that the agent lives."""


class ServiceManager:
    """A service manager; without one nothing is said.

    Args:
        address: of its socket, where `@` stands for an abstract name; None without one.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address and address.replace("@", "\0", 1)
        self._said_at = -math.inf

    @classmethod
    def of_environment(cls) -> "ServiceManager":
        """Return the one that has started us; programs that we start do not find it."""
        return cls(os.environ.pop(ADDRESS, None))

    def alive(self, now: float) -> None:
        """Say that the agent serves, at most once in `PAUSE` seconds."""
        if now - self._said_at >= PAUSE:
            self._said_at = now
            self._say("READY=1\nWATCHDOG=1")

    def stopping(self) -> None:
        """Say that the agent is about to end."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if self._address is None:
            return
        # A socket for each: an agent without free descriptors takes one when it can.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
                ours.setblocking(False)
                ours.sendto(text.encode(), self._address)
        except OSError as error:
            # Its queue may be full for a moment; the next word may get through.
            log.debug("the service manager takes nothing: %s", error.strerror)
