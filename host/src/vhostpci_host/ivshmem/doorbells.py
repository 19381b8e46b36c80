# SPDX-License-Identifier: Apache-2.0
"""Signals on their way between the two VMs."""

from collections.abc import Sequence
from contextlib import ExitStack

from vhostpci_shared import metadata as md
from vhostpci_shared.wire import ProtocolError

from ..fds import Notifier
from ..interfaces import Loop


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
        with ExitStack() as undo:
            self._source = undo.enter_context(source.dup())
            self._target = target.dup()
            undo.pop_all()
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


class VectorSet:
    """The vectors of one slave's device: they are given to it once, when it comes.

    A ring whose kick is known by then has the kick itself for its vector: so it goes
    from VM to VM, and we sleep.  Another has an eventfd of ours, to which kicks are
    relayed; so are those of a driver that has started anew, as it brings new ones.

    Args:
        kicks: by ring, as far as they are known.
    """

    def __init__(self, kicks: Sequence[Notifier | None]) -> None:
        self.notifiers: list[Notifier] = []
        self._direct: dict[int, int] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            self._fill(kicks)
            undo.pop_all()

    def _fill(self, kicks: Sequence[Notifier | None]) -> None:
        self.notifiers.append(Notifier.new())
        for ring, kick in enumerate(kicks):
            number = None if kick is None else kick.eventfd_id
            if kick is None or number is None or number in self._direct:
                self.notifiers.append(Notifier.new())
            else:
                self.notifiers.append(kick.dup())
                self._direct[number] = ring

    def signal_metadata(self) -> None:
        """Tell the agent that the metadata has changed."""
        self.notifiers[md.METADATA_VECTOR].signal()

    def is_direct(self, ring: int) -> bool:
        """Whether the slave was given a kick of this ring's."""
        return ring in self._direct.values()

    def relay_target(self, ring: int, kick: Notifier) -> Notifier | None:
        """Return where to relay a ring's kick; None if the slave has it itself.

        Raises:
            ProtocolError: it is another ring's kick, so relaying might go in a circle.
        """
        number = kick.eventfd_id
        if number in self._direct:
            if self._direct[number] != ring:
                raise ProtocolError(f"ring {ring} has the kick of another ring")
            return None
        return self.notifiers[md.FIRST_KICK_VECTOR + ring]

    def close(self) -> None:
        """Let go of them; the slave has descriptors of its own."""
        for notifier in self.notifiers:
            notifier.close()


class CallSet:
    """The master's call notifiers as one peer of the slave: vector i is ring i.

    A ring without one has a placeholder: a peer's vectors are known by their order.
    A pipe or socket (User Mode Linux) is behind an eventfd: QEMU takes nothing else.
    """

    def __init__(self, loop: Loop, sources: Sequence[Notifier | None]) -> None:
        self.notifiers: list[Notifier] = []
        self._sources = tuple(sources)
        self._relays: list[Relay] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for source in sources:
                self._add(loop, source)
            undo.pop_all()

    def _add(self, loop: Loop, source: Notifier | None) -> None:
        if source is not None and source.is_eventfd:
            self.notifiers.append(source.dup())
            return
        self.notifiers.append(Notifier.new())
        if source is not None:
            self._relays.append(Relay(loop, self.notifiers[-1], source))

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
