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
"""Seconds without a word of the agent after which nobody waits for it."""
LOG_PAUSE = 1.0
"""Seconds between two lines about what the agent says."""


class AgentView:
    """What the agent said last, and when it was seen to say something new.

    What it finds in the metadata at first may be from an agent that is long dead.

    Args:
        metadata: the region that it writes its part of.
        name: the device's, for the log.
        vectors: how many the slave's device must have.
    """

    def __init__(self, metadata: Metadata, name: str, vectors: int) -> None:
        self._metadata = metadata
        self._name = name
        self._vectors = vectors
        self._lived_at: float | None = None
        self._now = 0.0
        self._instance: int | None = None  # which has served this slave's device
        self._said: object = None
        self._said_at = 0.0
        self.entry = self._read()
        self.late_at = 0
        """The generation that it missed, after a wait that timed out."""

    def forget(self) -> None:
        """Another slave: whatever is in the metadata is from before."""
        self._lived_at = self._instance = None
        self._said = None
        self.entry = self._read()
        self.late_at = 0

    def sample(self, now: float) -> bool:
        """Look at what it says; return whether it serves the slave after another.

        The first one has the slave's sessions for itself.
        """
        before, self._now = self.entry, now
        self.entry = self._read()
        if self.entry != before:
            self._lived_at = now
        self._tell(now)
        if self._lived_at is None or self.entry.state is not AgentState.READY:
            return False
        last, self._instance = self._instance, self.entry.instance
        return last not in (None, self._instance)

    def _read(self) -> Agent:
        try:
            return self._metadata.agent()
        except ProtocolError as error:
            return Agent(state=AgentState.FAILED, message=str(error))

    @property
    def present(self) -> bool:
        """Whether it served the device when we looked last: worth waiting for.

        It is from its first word on.  It runs rings from then on, and its heart may
        not have beaten yet.
        """
        return (
            self.entry.state is AgentState.READY
            and self._lived_at is not None
            and self._now - self._lived_at < ALIVE
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
