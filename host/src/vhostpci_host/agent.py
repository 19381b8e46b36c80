# SPDX-License-Identifier: Apache-2.0
"""The agent, as far as the daemon can know it: by what it writes.

All of it is the slave's own word.  It decides only how long we wait for the agent
and what we tell the user, never where we read or write.
"""

import logging

from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import Agent, AgentState
from vhostpci_shared.wire import ProtocolError

log = logging.getLogger(__name__)

ALIVE = 2.0
"""Seconds without a heartbeat after which nobody waits for the agent."""
LOG_PAUSE = 1.0
"""Seconds between two lines about what the agent says."""


class AgentView:
    """What the agent said last, and since when its heart has beaten.

    Args:
        metadata: the region that it writes its part of.
        name: the device's, for the log.
        vectors: how many the slave's device must have.
    """

    def __init__(self, metadata: Metadata, name: str, vectors: int) -> None:
        self._metadata = metadata
        self._name = name
        self._vectors = vectors
        self._beat_at: float | None = None
        self._now = 0.0
        self._known = False
        self._said: object = None
        self._said_at = 0.0
        self.entry = Agent()
        self.late_at = 0
        """The generation that it missed, after a wait that timed out."""

    def forget(self) -> None:
        """Its slave is gone: whatever is in the metadata is from before."""
        self._beat_at = None
        self._known = False
        self._said = None
        self.late_at = 0

    def sample(self, now: float) -> bool:
        """Look at what it says; return whether this is another agent than before."""
        before, self._now = self.entry, now
        try:
            self.entry = self._metadata.agent()
        except ProtocolError as error:
            self.entry = Agent(state=AgentState.FAILED, message=str(error))
        if self._known and self.entry.heartbeat != before.heartbeat:
            self._beat_at = now
        self._known = True
        self._tell(now)
        ready = self.entry.state is AgentState.READY
        return ready and self.entry.instance != before.instance

    @property
    def present(self) -> bool:
        """Whether it served the device when we looked last: worth waiting for."""
        return (
            self.entry.state is AgentState.READY
            and self._beat_at is not None
            and self._now - self._beat_at < ALIVE
            and self.entry.generation >= self.late_at
        )

    def _tell(self, now: float) -> None:
        """Log what it says of itself, once, and so that it cannot fill the log."""
        entry = self.entry
        said = (entry.instance, entry.state, entry.vectors, entry.message)
        if said == self._said or now - self._said_at < LOG_PAUSE:
            return
        self._said, self._said_at = said, now
        if entry.state is AgentState.READY:
            log.info("%s: agent is ready (%s)", self._name, entry.binding or "unknown")
            self._tell_vectors()
        elif entry.state is AgentState.FAILED:
            log.warning("%s: agent failed: %s", self._name, entry.message)

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
