# SPDX-License-Identifier: Apache-2.0
"""A daemon's socket as a source of one device.

The agent asks a source in each round which devices are there, so a device that
disappears and comes back needs no more than an entry in a list.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vhostpci_shared import ivshmem
from vhostpci_shared.limits import reason
from vhostpci_shared.wire import ProtocolError

from ..errors import Unusable
from ..interfaces import Device, Windows
from .client import HANDSHAKE, RETRY, Client, ServerGone
from .windows import SocketWindows

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds to wait for a place that another agent has: the daemon disconnects one that
hangs, if another one comes; one that has not served yet only after 5 s."""
_ABSENT = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ECONNRESET)


class SocketSource:
    """A daemon's socket, tried every second while no daemon listens on it.

    Each window that the device names has another socket beside it.

    Args:
        path: the socket.
        now: a monotonic clock, in seconds.
    """

    single = True

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._windows = SocketWindows(path, now)
        self._client: Client | None = None
        self._due = 0.0
        self._occupied_since: float | None = None
        self._served = False
        self._said = ""

    def look(self) -> None:
        """Connect, or read what the daemon sends.

        Raises:
            Unusable: the path is no socket, or the server refuses us.
        """
        try:
            if self._client is None and self._now() >= self._due:
                self._due = self._now() + RETRY
                self._client = Client(self._path)
            if self._client is not None:
                self._client.receive()
                self._greet(self._client)
                if not self._client.connected and self.interval == 0:
                    raise ProtocolError(
                        f"{self._path}: no handshake within {HANDSHAKE:g} s; is it the "
                        "daemon's NAME.ivshmem?",
                        code="P075",
                    )
        except ivshmem.Occupied as why:
            self._lose(Unusable(str(why), code=why.code), fatal=self._waited_enough())
        except (ServerGone, ivshmem.Exhausted) as why:
            self._lose(Unusable(str(why), code=why.code), fatal=False)
        except ProtocolError as why:
            self._lose(Unusable(str(why), code=why.code), fatal=True)
        except OSError as error:
            fatal = error.errno not in _ABSENT
            self._lose(
                Unusable(f"{self._path}: {reason(error)}", code="G151"), fatal=fatal
            )
        if self._client is not None:  # without a daemon there are no windows either
            self._windows.look()

    def _waited_enough(self) -> bool:
        """Whether the place in question was another agent's for `PATIENCE` seconds."""
        if self._occupied_since is None:
            self._occupied_since = self._now()
        return self._now() - self._occupied_since >= PATIENCE

    def _greet(self, client: Client) -> None:
        if client.connected and not self._served:
            self._served, self._said = True, ""
            self._occupied_since = None

    def _lose(self, why: Unusable, *, fatal: bool) -> None:
        """Connect again in a second.

        Raises:
            Unusable: the failure is fatal, and the device was never served.
        """
        client, self._client = self._client, None
        if client is not None and not client.connected:
            client.close()  # else the agent has it, and closes it
        if fatal and not self._served:
            raise why from None
        if str(why) != self._said:
            log.warning("%s; trying again every second", why)
            self._said = str(why)

    def devices(self) -> Iterable[Device]:
        """Return the device, while the daemon shows it."""
        if self._client is not None and self._client.connected:
            yield self._client

    def windows(self, device: Device) -> Windows:
        """Return the windows of the only device."""
        return self._windows

    def fds(self) -> Iterable[int]:
        """Return the connections."""
        if self._client is not None:
            yield self._client.fileno()
            yield from self._client.alarms()
            yield from self._windows.fds()

    @property
    def interval(self) -> float | None:
        """Seconds until the next attempt, or until the handshake is too late."""
        if self._client is None:
            return max(0.0, self._due - self._now())
        if self._client.connected:
            return self._windows.interval
        return max(0.0, self._due - RETRY + HANDSHAKE - self._now())

    def refuse(self, device: Device) -> None:
        """Do nothing: an agent whose only device is refused ends."""

    def give_back(self, device: Device) -> None:
        """Close the connection at once, which takes no time."""
        device.close()

    def close(self) -> None:
        """Close a connection whose handshake is not complete."""
        if self._client is not None and not self._client.connected:
            self._client.close()
            self._client = None
