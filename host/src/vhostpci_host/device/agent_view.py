# SPDX-License-Identifier: Apache-2.0
"""What the daemon knows of the agent: only what the agent writes into the metadata.

All of it comes from the slave, which may lie.  It decides only how long the daemon
waits for the agent and what it tells the user, never where the daemon reads or writes.
"""

import logging

from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import Agent, AgentFlag, AgentState
from vhostpci_shared.wire import ProtocolError

from .kept import AgentLeft
from .peer_log import PeerLog

log = logging.getLogger(__name__)

ALIVE = 2.0
"""Seconds for which an agent that writes nothing is still waited for.

By our clock, also for a slave VM that has to wait for a processor: how long its guest
could run is not known here.  To take a slow agent for a silent one harms nothing: it
keeps its rings, and a quiesce fences it at once instead of waiting for it.
"""
HANGS = 0.7
"""Seconds after its last word for which an agent is not yet said to hang.

An agent says something each 0.2 s.  To be wrong costs a line in the log, and its place
only if another agent has come for it.
"""
HANGS_TICKS = 3
"""Ticks of ours without a word, too: a daemon that stood still has missed nothing."""
LOG_PAUSE = 1.0
"""Seconds between two lines about what the agent says."""
_HEARTBEAT = slice(8, 16)
"""The heartbeat's bytes in the agent's entry."""
MISMATCH = "features do not match"
_IDLE = {AgentState.WAITING: "agent is waiting", AgentState.MISMATCH: MISMATCH}
"""The states in which an agent follows us and runs no ring, as `status` calls them."""
_FOLLOWING = (AgentState.READY, *_IDLE)


class AgentView:
    """What the agent said last, and when it was last seen to say something new.

    What stands in the metadata when a slave connects may be from an agent that has
    died.  So an agent counts as alive only once its entry has changed.  While no slave
    is connected the entry may change, too: by an agent that is ending, or by one whose
    slave VM is connected to an earlier daemon.  Such an agent lives, but serves nothing
    and is not told of in the log.

    Args:
        metadata: the region that the agent writes its part of.
        name: the device's, for the log.
        vectors: how many the slave's device must have.
        peer_log: is told of its silences; an agent may have one each second.
    """

    def __init__(
        self, metadata: Metadata, name: str, vectors: int, peer_log: PeerLog
    ) -> None:
        self._metadata = metadata
        self._log = peer_log
        self._name = name
        self._vectors = vectors
        self._lived_at: float | None = None
        self._still = 0  # ticks since then
        self._now = 0.0
        self._instance: int | None = None  # of the agent that has served this slave
        self._said: object = None
        self._said_at = 0.0
        self._untold = self._silence_told = self._connected = False
        self._bytes = metadata.agent_bytes()
        self.entry = _parse(self._bytes)
        """What it said last; of its heartbeat it is enough that it changes."""
        self.offers: int | None = None
        """The features that its data plane serves, or the last agent's did.

        None if none has said so yet.  It may name any bits.
        """
        self.late_at = 0
        """The generation that the agent missed, after a wait that timed out."""

    def forget(self, *, connected: bool) -> None:
        """Start again: a slave has come or gone, and no agent has said anything yet.

        Args:
            connected: whether a slave is connected from now on.
        """
        self._connected, self._still = connected, 0
        self._lived_at = self._instance = None
        self._said = None
        self._untold = self._silence_told = False
        self._bytes = self._metadata.agent_bytes()
        self.entry = _parse(self._bytes)
        self.late_at = 0

    def capture(self) -> AgentLeft:
        """Return what a successor needs to know of the agent."""
        return AgentLeft(
            instance=self._instance, present=self.follows, offers=self.offers
        )

    def restore(self, state: AgentLeft, now: float) -> None:
        """Go on after `forget`, with what a daemon before us knew of the agent.

        Another agent may have come since: its instance shows that.
        """
        self._now, self._instance = now, state.instance
        self.offers = state.offers
        if state.present:
            # It has as long as any other to say something: a front-end whose request
            # stops rings must wait for it.
            self._lived_at = now
            entry = self.entry
            self._said = entry.instance, entry.state, entry.vectors, entry.message

    def only_beats(self, now: float) -> bool:
        """Look at the agent's entry; return whether there is nothing new but a beat.

        This is asked in each tick, four times a second for each device, so nothing is
        parsed.  That the agent hangs is new, too.
        """
        self._now = now
        data = self._metadata.agent_bytes()
        if data == self._bytes:
            self._still += 1
            return self._silence_told or not self.hangs
        if not self._recent or not _same_but_beat(data, self._bytes):
            return False
        self._bytes, self._lived_at, self._still = data, now, 0
        return self.hangs == self._silence_told

    def sample(self, now: float) -> bool:
        """Read what the agent says; return whether it serves the slave after another.

        The first agent of a slave has the slave's sessions for itself; each one that
        follows needs new ones, or its predecessor might still act in them.
        """
        self._now = now
        if not self._read(now):
            if self._untold:
                self._tell(now)
            self._tell_silence()
            return False
        self._tell(now)
        if self._lived_at is None or self.entry.state is not AgentState.READY:
            return False
        last, self._instance = self._instance, self.entry.instance
        return last not in (None, self._instance)

    def _read(self, now: float) -> bool:
        """Take over what the agent has written; return whether it is more than a beat.

        Each byte is read once: what is compared is what is parsed.
        """
        data, before = self._metadata.agent_bytes(), self._bytes
        if data == before:
            return False
        alive = self._lived_at is not None
        self._bytes, self._lived_at, self._still = data, now, 0
        if alive and _same_but_beat(data, before):
            return False
        self.entry = entry = _parse(data)
        # Also of one that waits: it may be known what serves when it is back.
        if self._connected and self.lives and AgentFlag.OFFERS in entry.flags:
            self.offers = entry.offers
        return True

    @property
    def present(self) -> bool:
        """Whether it served the device when it was last sampled: worth waiting for.

        An agent is present from its first word on, not from its first heartbeat: it may
        run rings between the two.
        """
        return self.follows and self.entry.state is AgentState.READY

    @property
    def follows(self) -> bool:
        """Whether it did what we published when it was last sampled.

        It may have windows mapped and yet run no ring: see `idle`.
        """
        return self._connected and self.lives and self.entry.generation >= self.late_at

    @property
    def idle(self) -> str:
        """Why it runs no ring although it follows us; empty if it runs them."""
        return _IDLE.get(self.entry.state, "") if self.follows else ""

    @property
    def lives(self) -> bool:
        """Whether an agent has written to the metadata lately, with a slave or without.

        It cannot serve the device without a slave: that slave VM is connected to an
        earlier daemon.
        """
        return self.entry.state in _FOLLOWING and self._recent

    @property
    def failed(self) -> bool:
        """Whether it has said lately that it cannot serve the device."""
        failed = self.entry.state is AgentState.FAILED
        return failed and self._connected and self._recent

    @property
    def _recent(self) -> bool:
        """Whether it said something within the last `ALIVE` seconds."""
        return self._lived_at is not None and self._now - self._lived_at < ALIVE

    @property
    def serves(self) -> bool:
        """Whether it serves the slave, for all that is known."""
        return self.present and not self.hangs

    @property
    def heard(self) -> float | None:
        """Seconds from its last word to our last look; None if it said nothing."""
        return None if self._lived_at is None else self._now - self._lived_at

    def silent_since(self, connected_at: float) -> float:
        """Return since when it has said nothing; never before `connected_at`."""
        return connected_at if self._lived_at is None else self._lived_at

    @property
    def hangs(self) -> bool:
        """Whether it followed us, and has said nothing for `HANGS` seconds."""
        return (
            self._still >= HANGS_TICKS
            and self._followed
            and self._now - self.silent_since(self._now) >= HANGS
        )

    @property
    def silent(self) -> bool:
        """Whether it followed us, and hangs or has not followed a quiesce."""
        return self.hangs or (self._followed and not self.follows)

    @property
    def _followed(self) -> bool:
        """Whether it followed us when it was last heard."""
        following = self._connected and self.entry.state in _FOLLOWING
        return following and self._lived_at is not None

    def _tell_silence(self) -> None:
        """Log once that the agent is silent, and once that it is back."""
        told = self._silence_told
        if self.silent:
            self._silence_told = True
            if not told:
                self._log.warn(
                    f"the agent has said nothing for {HANGS:g} s: it hangs, or the "
                    "slave does or has no processor to run on; packets may not cross "
                    "until it is back",
                    "agent hangs",
                )
        elif told and self.follows:
            self._silence_told = False
            self._log.info("the agent is back", "agent is back")

    def _tell(self, now: float) -> None:
        """Log what the agent says of itself: once, and at most one line a second."""
        entry = self.entry
        said = (entry.instance, entry.state, entry.vectors, entry.message)
        self._untold = False
        if said == self._said or not self._connected:
            return
        if entry.state is AgentState.NONE:
            # There is no line for it, so what is said next need not wait.
            self._said = said
            return
        self._untold = now - self._said_at < LOG_PAUSE
        if self._untold:
            return
        self._said, self._said_at = said, now
        if entry.state is AgentState.READY:
            log.info("%s: agent is ready (%s)", self._name, entry.binding or "unknown")
            self._tell_vectors()
        elif entry.state is AgentState.FAILED:
            log.warning("%s: agent failed: %s", self._name, entry.message)
        elif entry.state is AgentState.WAITING:
            log.info("%s: the agent is waiting: %s", self._name, entry.message)

    def _tell_vectors(self) -> None:
        if 0 < self.entry.vectors < self._vectors:
            log.warning(
                "%s: the slave's device has %d vectors and needs %d: start the slave "
                "with ivshmem-doorbell,vectors=%d",
                self._name,
                self.entry.vectors,
                self._vectors,
                self._vectors,
            )


def _parse(data: bytes) -> Agent:
    """Return the agent's entry; one that cannot be is that of an agent that failed."""
    try:
        return Agent.parse(data)
    except ProtocolError as error:
        return Agent(state=AgentState.FAILED, message=str(error))


def _same_but_beat(one: bytes, other: bytes) -> bool:
    """Whether two entries differ in nothing but the heartbeat."""
    start, stop = _HEARTBEAT.start, _HEARTBEAT.stop
    return one[stop:] == other[stop:] and one[:start] == other[:start]
