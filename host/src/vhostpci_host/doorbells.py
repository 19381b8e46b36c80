# SPDX-License-Identifier: Apache-2.0
"""Signals on their way between the two VMs."""

from collections.abc import Sequence

from .fds import Notifier
from .ports import Loop


class Relay:
    """Passes the signals of one notifier to another.

    It watches a descriptor of its own: the one that it was made from may be closed
    at any time, and epoll would not say so.
    """

    def __init__(self, loop: Loop, source: Notifier, target: Notifier) -> None:
        self.count = 0
        self.source = source
        """The notifier that it was made from."""
        self._loop = loop
        self._source = source.dup()
        self._target = target.dup()
        loop.add_reader(self._source.fileno(), self._pass)

    def _pass(self) -> None:
        try:
            if self._source.drain():
                self.count += 1
                self._target.signal()
        except EOFError:
            self._loop.remove_reader(self._source.fileno())

    def close(self) -> None:
        """Pass no more."""
        self._loop.remove_reader(self._source.fileno())
        self._source.close()
        self._target.close()


class CallSet:
    """The master's call notifiers as one peer of the slave: vector i is ring i.

    A ring without one has a placeholder: a peer's vectors are known by their order.
    A pipe or socket (User Mode Linux) is behind an eventfd: QEMU takes nothing else.
    """

    def __init__(self, loop: Loop, sources: Sequence[Notifier | None]) -> None:
        self.notifiers: list[Notifier] = []
        self._sources = tuple(sources)
        self._relays: list[Relay] = []
        for source in sources:
            self.notifiers.append(self._eventfd(loop, source))

    def _eventfd(self, loop: Loop, source: Notifier | None) -> Notifier:
        if source is not None and source.is_eventfd:
            return source.dup()
        eventfd = Notifier.new()
        if source is not None:
            self._relays.append(Relay(loop, eventfd, source))
        return eventfd

    def covers(self, wanted: Sequence[Notifier | None]) -> bool:
        """Whether it has all of these: that a ring has stopped takes no new peer."""
        return all(
            theirs is None or ours is theirs
            for ours, theirs in zip(self._sources, wanted, strict=True)
        )

    def signal(self) -> None:
        """Signal all: one interrupt too many is harmless, one lost hangs a queue."""
        for notifier in self.notifiers:
            notifier.signal()

    def close(self) -> None:
        """Let go of them; the slave's QEMU has descriptors of its own."""
        for relay in self._relays:
            relay.close()
        for notifier in self.notifiers:
            notifier.close()
