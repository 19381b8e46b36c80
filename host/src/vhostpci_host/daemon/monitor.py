# SPDX-License-Identifier: Apache-2.0
"""Tells subscribers what happens to the devices, and never waits for one of them.

What was not sent to a subscriber yet is in a bounded buffer.  One that does not read
loses its subscription, and no event is left out for one that stays.  While there is no
subscriber, nothing is looked at.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping

from .. import __version__
from ..interfaces import Json
from .entry import Entry
from .events import Event, View, differences, view

MOST = 256 * 1024
"""Bytes of events that wait for one subscriber, beside the present state."""


class Unread(ConnectionError):
    """A subscriber does not read its events."""


class Subscription:
    """What is to be sent to one subscriber.

    Args:
        name: the only device of interest; None: all.
        ended: called when the subscriber is gone.
    """

    def __init__(
        self, name: str | None, ended: Callable[["Subscription"], None]
    ) -> None:
        self.name = name
        self._ended = ended
        self._lines: list[bytes] = []
        self._size = 0
        self._lost = self._over = False
        self._some = asyncio.Event()

    def push(self, line: bytes, *, bounded: bool = True) -> None:
        """Have a line sent; a subscriber for which too much waits is lost.

        Args:
            line: one event.
            bounded: whether it counts: the present state is as long as it is.
        """
        if self._lost or self._over:
            return
        self._size += len(line) if bounded else 0
        self._lines.append(line)
        if self._size > MOST:
            self._lost = True
            self._lines.clear()
        self._some.set()

    async def take(self) -> bytes:
        """Wait for lines, and return them; there are none once it is over.

        Raises:
            Unread: too many have waited.
        """
        await self._some.wait()
        if self._lost:
            raise Unread(f"more than {MOST} bytes of events wait for it")
        if not self._over:
            self._some.clear()
        lines, self._lines, self._size = self._lines, [], 0
        return b"".join(lines)

    def finish(self) -> None:
        """Have what waits sent, and no more after it."""
        self._over = True
        self._some.set()

    def close(self) -> None:
        """End the subscription: nothing more is kept for it."""
        self._lost = True
        self._lines.clear()
        self._ended(self)


class Monitor:
    """Finds out what has changed, if there is a subscriber.

    Args:
        entries: returns the daemon's devices.
        now: the time as people have it, in seconds since 1970.
    """

    def __init__(
        self,
        entries: Callable[[], Mapping[str, Entry]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._entries = entries
        self._now = now
        self._subscriptions: list[Subscription] = []
        self._views: dict[str, View] = {}

    def subscribe(self, name: str | None = None) -> Subscription:
        """Return a new subscription, which begins with the present state."""
        # Those that are there already learn first what is new to them.
        if self._subscriptions:
            self.look()
        else:
            self._views = dict(self._present())
        made = Subscription(name, self._forget)
        self._tell(made, "daemon", {"pid": os.getpid(), "version": __version__})
        shown = [one for one in self._views if name in (None, one)]
        for one in shown:
            self._tell(made, "present", self._views[one].values(), one)
        self._tell(made, "listening", {"devices": len(shown)})
        self._subscriptions.append(made)
        return made

    def look(self) -> None:
        """Tell the subscribers what has changed since the last look."""
        if not self._subscriptions:
            return
        before, self._views = self._views, dict(self._present())
        for name in before.keys() - self._views.keys():
            self._publish(name, ("device-removed", {}))
        for name, after in self._views.items():
            if name not in before:
                self._publish(name, ("device-added", after.values()))
            elif before[name] != after:
                for event in differences(before[name], after):
                    self._publish(name, event)

    def _present(self) -> list[tuple[str, View]]:
        found = ((name, view(entry)) for name, entry in self._entries().items())
        return [(name, one) for name, one in found if one is not None]

    def end(self) -> None:
        """Tell the subscribers that the daemon ends, as the last that they read."""
        self.look()
        for one in self._subscriptions:
            self._tell(one, "daemon-ends", {}, bounded=True)
            one.finish()

    def _publish(self, name: str, event: Event) -> None:
        for one in self._subscriptions:
            if one.name in (None, name):
                self._tell(one, *event, name, bounded=True)

    def _tell(
        self,
        one: Subscription,
        event: str,
        values: Json,
        device: str | None = None,
        *,
        bounded: bool = False,
    ) -> None:
        about = {} if device is None else {"device": device}
        text = {"time": round(self._now(), 3), "event": event, **about, **values}
        one.push(json.dumps(text).encode() + b"\n", bounded=bounded)

    def _forget(self, one: Subscription) -> None:
        if one in self._subscriptions:
            self._subscriptions.remove(one)
