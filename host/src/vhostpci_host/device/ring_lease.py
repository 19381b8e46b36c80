# SPDX-License-Identifier: Apache-2.0
"""The lease of a ring: whether the agent may touch it, and in which session.

What the agent was told of each ring::

              settle              Quiesce or disabled, agent present
    STOPPED ─────────► RUNNING ──────────────────────────────► STOPPING
       ▲                  │ the same without an agent;            │ agent's answer,
       └──────────────────┴─ front-end gone ◄─────────────────────┘ or time-out

A ring gets a new session number whenever it may change owners, which is at each arrow
but the one to STOPPING.  An agent that missed the change finds another number in the
metadata, and is fenced: it stops.

While a ring is STOPPING the agent still has it, in the same session.  The agent may
have taken a packet from the TAP, or given it one, that it has not yet returned as used;
in a new session that packet would be lost, or sent twice.
"""

import random
from dataclasses import dataclass, field
from enum import Enum

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import RingFlag

from ..fds import Notifier
from ..ivshmem.doorbells import CallSet, VectorSet
from ..ivshmem.relays import Relay, Relays
from ..keeper.slots import StateError
from ..vhost_user.vring import Areas, Vring
from .kept import LeaseState

_NOWHERE = Areas(0, 0, 0)


class RingState(Enum):
    """What the agent was told of a ring."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"


STEPS = {
    RingState.STOPPED: {RingState.RUNNING},
    RingState.RUNNING: {RingState.STOPPING, RingState.STOPPED},
    RingState.STOPPING: {RingState.STOPPED},
}


class Sessions:
    """Session numbers: each is given once, to one ring.

    They start at random, so that two runs of the daemon give different ones.
    """

    def __init__(self) -> None:
        self.last = random.getrandbits(32) << 20

    def new(self) -> int:
        """Return a number that no ring has had."""
        self.last += 1
        return self.last


@dataclass(slots=True)
class Lease:
    """The lease of one ring, and the relay of its kicks."""

    index: int
    sessions: Sessions = field(repr=False)
    session: int = 0
    state: RingState = RingState.STOPPED
    resumes: bool = False
    """Whether another agent may have worked the ring since it was started."""
    origin: int = 0
    """The session in which the ring was started at a base."""
    renewed_at: float = 0.0
    """When the agent was last given the ring."""
    reported: int = 0
    """The session for which the log already says that the ring is broken."""
    kicks: int = 0
    """Kicks that were relayed, before the present relay."""
    relay: Relay | None = None
    _relayed_for: VectorSet | CallSet | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.session = self.sessions.new()

    @property
    def running(self) -> bool:
        """Whether the agent may touch the ring."""
        return self.state is RingState.RUNNING

    def step(self, state: RingState) -> None:
        """Change to `state`: in a new session, unless the agent still has the ring."""
        assert state in STEPS[self.state], f"{self.state} to {state}"
        self.state, self.resumes = state, False
        if state is not RingState.STOPPING:
            self.session = self.sessions.new()
        if state is RingState.RUNNING:
            self.origin = self.session
        else:
            self._close_relay()

    def renew(self, now: float) -> None:
        """Give the running ring to the agent in a new session, without a base.

        The ring may be worked at this moment, by this agent or by the one before.  An
        index that we read now would be out of date when the agent starts the ring.
        """
        self.session, self.renewed_at = self.sessions.new(), now
        self.resumes = True

    def relay_kicks(
        self,
        relays: Relays,
        kick: Notifier | None,
        vectors: VectorSet | CallSet | None,
    ) -> None:
        """Relay `kick` to the ring's vector from now on; an earlier relay ends.

        Without vectors there is no slave: a kick stays in its eventfd until one comes.

        Raises:
            ProtocolError: the kick is another ring's.
        """
        if self._relays(kick, vectors):
            return
        self._close_relay()
        if kick is None or vectors is None or not self.running:
            return
        target = vectors.relay_target(self.index, kick)
        if target is not None:
            self.relay = relays.add(kick, target)
            self._relayed_for = vectors

    def _relays(
        self, kick: Notifier | None, vectors: VectorSet | CallSet | None
    ) -> bool:
        return (
            self.relay is not None
            and self.relay.source is kick
            and self._relayed_for is vectors
        )

    def relayed(self) -> int:
        """Return how many kicks were relayed since the daemon started."""
        return self.kicks + (self.relay.count if self.relay else 0)

    def entry(
        self, vring: Vring | None, call_peer: int | None, peer_kick: int | None = None
    ) -> md.Ring:
        """Return the ring's metadata entry: without addresses unless the ring runs.

        Args:
            vring: what the front-end says of it; None without a front-end.
            call_peer: the peer whose doorbells interrupt the master.
            peer_kick: which vector of that peer is the kick; None if none is.
        """
        flags, areas, size, base = RingFlag(0), _NOWHERE, 0, 0
        kick_peer, kick_vector = 0, md.FIRST_KICK_VECTOR + self.index
        if vring is not None and self.running and vring.areas is not None:
            flags = self._flags(vring, call_peer)
            # A packed ring that no agent has worked yet starts at its base.
            base = vring.base if vring.packed or not self.resumes else 0
            areas, size = vring.areas, vring.size
            kicked = vring.kick is not None
            if kicked and call_peer is not None and peer_kick is not None:
                kick_peer, kick_vector = call_peer, peer_kick
        return md.Ring(
            session=self.session,
            flags=flags,
            size=size,
            desc=areas.desc,
            driver=areas.driver,
            device=areas.device,
            base=base,
            kick_vector=kick_vector,
            call_peer=call_peer or 0,
            call_vector=self.index,
            kick_peer=kick_peer,
            origin=self.origin,
        )

    def _flags(self, vring: Vring, call_peer: int | None) -> RingFlag:
        """Return the flags of a ring that runs."""
        flags = RingFlag.STARTED | RingFlag.ENABLED
        if call_peer is not None and vring.call is not None:
            flags |= RingFlag.CALL
        if vring.kick is None:
            flags |= RingFlag.POLL
        if vring.packed:
            flags |= RingFlag.PACKED
        if self.resumes:
            flags |= RingFlag.RESUME
        return flags

    def capture(self) -> LeaseState:
        """Return what a successor needs to go on with the lease."""
        return LeaseState(
            state=self.state.value,
            session=self.session,
            origin=self.origin,
            resumes=self.resumes,
            reported=self.reported,
        )

    def restore(self, state: LeaseState) -> None:
        """Go on with the lease that a daemon before us has given.

        Raises:
            StateError: there is no such state.
        """
        try:
            self.state = RingState(state.state)
        except ValueError as error:
            raise StateError(str(error)) from error
        self.session, self.origin = state.session, state.origin
        self.resumes, self.reported = state.resumes, state.reported

    def _close_relay(self) -> None:
        if self.relay is not None:
            self.relay.close()  # which may forward one more
            self.kicks += self.relay.count
            self.relay = None
