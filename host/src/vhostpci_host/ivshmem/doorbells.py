# SPDX-License-Identifier: Apache-2.0
"""Carry kicks from the master to the slave, and calls from the slave to the master."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Self

from vhostpci_shared import metadata as md
from vhostpci_shared.wire import ProtocolError

from ..fds import Notifier
from .relays import Relay, Relays


class VectorSet:
    """The eventfds of one slave's vectors, which the slave gets once, when it connects.

    A slave process that takes kicks has them from its call peer (`CallSet`); of its
    vectors only the first is used.

    The vector of a ring whose kick is known by then is the kick itself: the master
    signals the slave without the daemon.  Any other ring has an eventfd of ours, into
    which the daemon relays the kicks.  A driver that starts again brings new kicks;
    those are relayed too, because the slave's QEMU takes its vectors only once.

    Args:
        kicks: one for each ring; None for a kick that is not known yet.
    """

    def __init__(self, kicks: Sequence[Notifier | None]) -> None:
        self.notifiers: list[Notifier] = []
        # The kernel's number of each eventfd that is a kick itself, and its ring.
        self._direct: dict[int, int] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            self._fill(kicks)
            undo.pop_all()

    def _fill(self, kicks: Sequence[Notifier | None]) -> None:
        # Vector 0 is for the metadata; the rings' vectors follow in their order.
        self.notifiers.append(Notifier.new())
        for ring, kick in enumerate(kicks):
            # Compare the kernel's number: two descriptors may be of one eventfd.
            number = None if kick is None else kick.eventfd_id
            # A pipe has no number, and QEMU takes only eventfds.  One eventfd
            # as the vector of two rings would signal only one of them.
            if kick is None or number is None or number in self._direct:
                self.notifiers.append(Notifier.new())
            else:
                self.notifiers.append(kick.dup())
                self._direct[number] = ring

    @classmethod
    def left(cls, notifiers: Sequence[Notifier], direct: Iterable[int]) -> Self:
        """Return the vectors that a daemon before us has given its slave.

        Args:
            notifiers: all of them; closed with the set.
            direct: the rings whose vector is the kick that they had at first.
        """
        found = cls([])
        found.close()
        found.notifiers = list(notifiers)
        for ring in direct:
            number = notifiers[md.FIRST_KICK_VECTOR + ring].eventfd_id
            if number is not None:
                found._direct[number] = ring
        return found

    @property
    def direct(self) -> tuple[int, ...]:
        """The rings whose vector is the kick that they had at first."""
        return tuple(self._direct.values())

    def signal_all(self) -> None:
        """Signal every vector: one signal too many is harmless."""
        for notifier in self.notifiers:
            notifier.signal()

    def signal_metadata(self) -> None:
        """Signal the agent that the metadata has changed."""
        self.notifiers[md.METADATA_VECTOR].signal()

    def is_direct(self, ring: int) -> bool:
        """Whether this ring's vector is the kick that the ring had at first."""
        return ring in self._direct.values()

    def relay_target(self, ring: int, kick: Notifier) -> Notifier | None:
        """Return the notifier to relay a ring's kick to; None if no relay is needed.

        Raises:
            ProtocolError: the kick is the vector of another ring.
        """
        number = kick.eventfd_id
        if number in self._direct:
            # Two rings with each other's kicks would be two relays that signal each
            # other without end.
            if self._direct[number] != ring:
                raise ProtocolError(
                    f"ring {ring} has the kick of another ring", code="P028"
                )
            # The slave waits for this very eventfd; a relay would take its signals.
            return None
        return self.notifiers[md.FIRST_KICK_VECTOR + ring]

    def close(self) -> None:
        """Close our descriptors; the slave has its own."""
        for notifier in self.notifiers:
            notifier.close()


class CallSet:
    """The notifiers of one call peer: vector i interrupts the master for ring i.

    For a slave process that takes kicks, those follow, in the order of the rings.

    Args:
        relays: makes those of calls that the slave does not take.
        calls: one for each ring; None for a ring without one.
        kicks: the same, for a slave that takes kicks and sockets; None for any other.
    """

    def __init__(
        self,
        relays: Relays,
        calls: Sequence[Notifier | None],
        kicks: Sequence[Notifier | None] | None = None,
    ) -> None:
        self.notifiers: list[Notifier] = []
        self.sources: tuple[Notifier | None, ...] = (*calls, *(kicks or ()))
        self._calls = len(calls)
        self._takes_sockets = kicks is not None
        self._relays: dict[int, Relay] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for call in calls:
                self._add_call(relays, call)
            for kick in kicks or ():
                direct = kick is not None and kick.is_eventfd
                self.notifiers.append(kick.dup() if kick and direct else Notifier.new())
            undo.pop_all()

    @classmethod
    def left(
        cls,
        relays: Relays,
        notifiers: Sequence[Notifier],
        sources: Sequence[Notifier | None],
        calls: int,
        *,
        takes_kicks: bool,
    ) -> Self:
        """Return the set that a daemon before us has made.

        Args:
            relays: makes those of calls that the slave does not take.
            notifiers: all of them; closed with the set.
            sources: the front-end's notifiers; a closed one for one that it replaced.
            calls: how many of each are calls.
            takes_kicks: whether the slave takes kicks and sockets.
        """
        found = cls(relays, [])
        found.notifiers, found.sources = list(notifiers), tuple(sources)
        found._calls, found._takes_sockets = calls, takes_kicks
        for ring in range(calls):
            source, ours = sources[ring], notifiers[ring]
            if source and not source.closed and not found._takes(source):
                found._relays[ring] = relays.add(ours, source)
        return found

    def signal_kicks(self) -> None:
        """Wake the slave for every ring whose kicks are among the notifiers."""
        for notifier in self.notifiers[self._calls :]:
            notifier.signal()

    def _add_call(self, relays: Relays, source: Notifier | None) -> None:
        if source is not None and self._takes(source):
            self.notifiers.append(source.dup())
            return
        # A ring without a call has a placeholder, because a vector is known only by its
        # place in the order.  A pipe or a socket, which User Mode Linux brings, has an
        # eventfd in front, because the slave's QEMU takes nothing else.
        self.notifiers.append(Notifier.new())
        if source is not None:
            ring, ours = len(self.notifiers) - 1, self.notifiers[-1]
            self._relays[ring] = relays.add(ours, source)

    def _takes(self, call: Notifier) -> bool:
        return call.is_eventfd or (self._takes_sockets and call.is_socket)

    def relay_target(self, ring: int, kick: Notifier) -> Notifier | None:
        """Return the notifier to relay a ring's kick to; None if the slave has it."""
        return None if kick.is_eventfd else self.notifiers[self._calls + ring]

    def covers(self, wanted: Sequence[Notifier | None]) -> bool:
        """Whether every notifier in `wanted` is in the set already."""
        # A ring that has stopped wants none, and needs no new peer.  Compare objects,
        # not numbers: `sources` keeps the objects alive, so none is ever mistaken for
        # a newer one, while the number of a closed descriptor is soon used again.
        return all(
            theirs is None or ours is theirs
            for ours, theirs in zip(self.sources, wanted, strict=True)
        )

    def relayed(self, ring: int) -> int:
        """Return how many of a ring's calls were relayed."""
        return self._relays[ring].count if ring in self._relays else 0

    def signal(self) -> None:
        """Interrupt the master for every ring."""
        for notifier in self.notifiers[: self._calls]:
            notifier.signal()

    def close(self) -> None:
        """End the relays, and close our descriptors; the slave's QEMU has its own."""
        for relay in self._relays.values():
            relay.close()
        for notifier in self.notifiers:
            notifier.close()
