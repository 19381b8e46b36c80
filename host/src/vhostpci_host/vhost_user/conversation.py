# SPDX-License-Identifier: Apache-2.0
"""What a device and its front-ends have said to each other lately.

The last `KEPT` messages of each device are kept as they came, so that `trace` can show
them when something has gone wrong, without a restart.  Nothing is decoded for that: a
message costs a few microseconds here, whatever a hostile front-end sends.  At debug
level they are decoded and logged as well, so many in a second at most.
"""

import logging
import time
from collections import deque
from collections.abc import Callable

from vhostpci_shared.vhost_user import Header

from ..interfaces import Json
from . import spoken
from .message import Message

log = logging.getLogger(__name__)

KEPT = 256
"""Messages of a device that are kept."""
LONGEST = 512
"""Bytes of a payload that are kept: a table of eight regions has 264."""
LOGGED = 500
"""Messages of a device that are logged in one second."""


class Conversation:
    """The messages of one device, and the coming and going of its front-ends.

    Args:
        name: the device's.
        now: returns the time as the user knows it, in seconds.
    """

    def __init__(self, name: str, now: Callable[[], float] = time.time) -> None:
        self._name = name
        self._now = now
        self._entries: deque[Json] = deque(maxlen=KEPT)
        self._count = 0
        self._second, self._logged = 0, 0

    def since(self, number: int) -> Json:
        """Return what was said from entry `number` on, and is still kept.

        Returns:
            The entries, and the number of the one that comes next.
        """
        found = [entry for entry in self._entries if entry["number"] >= number]
        return {"entries": found, "next": self._count}

    def note(self, text: str) -> None:
        """Note that something has happened to the connection."""
        self._add({"event": text})

    def heard(self, message: Message) -> None:
        """Note a message of the front-end, before a handler takes its descriptors."""
        self._note_message(
            "front-end", message.header, message.payload, len(message.fds)
        )

    def said(self, data: bytes) -> None:
        """Note a reply of ours."""
        size = Header.layout.size
        self._note_message("daemon", Header.parse(data[:size]), data[size:], 0)

    def _note_message(
        self, sender: str, header: Header, payload: bytes, fds: int
    ) -> None:
        self._add(
            {
                "from": sender,
                "request": header.request,
                "flags": header.flags,
                "size": header.size,
                "payload": payload[:LONGEST].hex(),
                "fds": fds,
            }
        )

    def _add(self, entry: Json) -> None:
        entry = {"number": self._count, "time": self._now(), **entry}
        self._count += 1
        self._entries.append(entry)
        if log.isEnabledFor(logging.DEBUG):
            self._log(entry)

    def _log(self, entry: Json) -> None:
        second = int(entry["time"])
        if second != self._second:
            if (more := self._logged - LOGGED) > 0:
                log.debug("%s: vhost-user: %d more messages", self._name, more)
            self._second, self._logged = second, 0
        self._logged += 1
        if self._logged <= LOGGED:
            log.debug("%s: vhost-user: %s", self._name, spoken.text(entry))
