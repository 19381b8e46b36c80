# SPDX-License-Identifier: Apache-2.0
"""A ring as the agent was told of it: whether it may touch it, and in which session.

What the agent knows of each ring::

              settle                  Quiesce, agent present
    STOPPED ─────────► RUNNING ──────────────────────────────► STOPPING
       ▲                  │ Quiesce without an agent;             │ agent's answer,
       └──────────────────┴─ front-end gone ◄─────────────────────┘ or time-out

A ring gets a new session number whenever it may change owners, which is at each arrow
but the one to STOPPING: an agent that slept through it finds itself fenced.  While a
ring is STOPPING it is still the agent's, which may finish what it is about: a packet
that was taken from the TAP, or given to it, and not yet reported as used, would be lost
or sent twice.  Numbers start at random, so no two daemons give the same.
"""

import random
from dataclasses import dataclass, field
from enum import Enum

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import RingFlag

from ..fds import Notifier
from ..interfaces import Loop
from ..ivshmem.doorbells import Relay, VectorSet
from ..vhost_user.vring import Areas, Vring

_NOWHERE = Areas(0, 0, 0)


class RingState(Enum):
    """What the agent knows of a ring."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"


STEPS = {
    RingState.STOPPED: {RingState.RUNNING},
    RingState.RUNNING: {RingState.STOPPING, RingState.STOPPED},
    RingState.STOPPING: {RingState.STOPPED},
}


class Sessions:
    """Numbers that no ring had before, here or in another daemon."""

    def __init__(self) -> None:
        self.last = random.getrandbits(32) << 20

    def new(self) -> int:
        """Return the next."""
        self.last += 1
        return self.last


@dataclass(slots=True)
class Lease:
    """One ring's state, its session, and the relay of its kicks."""

    index: int
    sessions: Sessions = field(repr=False)
    session: int = 0
    state: RingState = RingState.STOPPED
    renewed_at: float = 0.0
    """When the agent was last given the ring."""
    reported: int = 0
    """The session in which the agent broke off, and the log has it."""
    kicks: int = 0
    """Kicks that were relayed, before the present relay."""
    relay: Relay | None = None
    _relayed_for: VectorSet | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.session = self.sessions.new()

    @property
    def running(self) -> bool:
        """Whether the agent may touch the ring."""
        return self.state is RingState.RUNNING

    def step(self, state: RingState) -> None:
        """Go to `state`; in a new session, unless the agent has the ring still."""
        assert state in STEPS[self.state], f"{self.state} to {state}"
        self.state = state
        if state is not RingState.STOPPING:
            self.session = self.sessions.new()
        if state is not RingState.RUNNING:
            self._close_relay()

    def renew(self, now: float) -> None:
        """Give the running ring to the agent anew."""
        self.session, self.renewed_at = self.sessions.new(), now

    def relay_kicks(
        self, loop: Loop, kick: Notifier | None, vectors: VectorSet | None
    ) -> None:
        """Relay `kick` to its vector, instead of what was relayed before.

        Without vectors there is no slave: what is signalled waits for one.

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
            self.relay = Relay(loop, kick, target)
            self._relayed_for = vectors

    def _relays(self, kick: Notifier | None, vectors: VectorSet | None) -> bool:
        return (
            self.relay is not None
            and self.relay.source is kick
            and self._relayed_for is vectors
        )

    def relayed(self) -> int:
        """Return how many kicks were relayed in all."""
        return self.kicks + (self.relay.count if self.relay else 0)

    def entry(self, wish: Vring | None, call_peer: int | None) -> md.Ring:
        """Return the metadata: addresses are there only while the ring runs."""
        flags, areas, size, base = RingFlag(0), _NOWHERE, 0, 0
        if wish is not None and self.running and wish.areas is not None:
            flags = RingFlag.STARTED | RingFlag.ENABLED
            areas, size, base = wish.areas, wish.size, wish.base
            if call_peer is not None and wish.call is not None:
                flags |= RingFlag.CALL
        return md.Ring(
            session=self.session,
            flags=flags,
            size=size,
            desc=areas.desc,
            driver=areas.driver,
            device=areas.device,
            base=base,
            kick_vector=md.FIRST_KICK_VECTOR + self.index,
            call_peer=call_peer or 0,
            call_vector=self.index,
        )

    def _close_relay(self) -> None:
        if self.relay is not None:
            self.kicks += self.relay.count
            self.relay.close()
            self.relay = None
