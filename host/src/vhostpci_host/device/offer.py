# SPDX-License-Identifier: Apache-2.0
"""Which features a front-end is offered, and what lacks if they were too many.

Theory of operation.  A master negotiates with us, and what moves its packets is in the
slave.  So a front-end is offered what the agent's data plane serves: as that agent
says, or the last one, within the option `features`.

It is asked for once.  QEMU gives its card what was offered when it made the card, and
no more and no less for as long as that is there.  When it connects again, it only
checks that nothing lacks which the driver has acknowledged, and if something does, it
disconnects and comes again.  So a front-end that has left for that reason is
offered all that we have the next time; whether its driver can be served is then shown
as a mismatch, and can be repaired.
"""

from vhostpci_shared import virtio
from vhostpci_shared.metadata import AgentState
from vhostpci_shared.virtio import Feature

from ..config.features import ALWAYS
from ..features import OFFERED
from .agent_view import AgentView

ADVICE = (
    "start the master VM again, which is offered what is served (without an agent what "
    "the option `features` has), or give the slave another data plane (--data-plane)"
)


class Offer:
    """What one device offers its front-ends.

    Args:
        given: the option `features`; None if it is not given.
        agent: says what its data plane serves.
    """

    def __init__(self, given: Feature | None, agent: AgentView) -> None:
        self._given = given
        self._agent = agent
        self._told: Feature | None = None  # what the present front-end was offered
        self._refuser: int | None = None  # the process that left because of that
        self._mismatch = ""

    @property
    def limit(self) -> Feature:
        """The most that a front-end is offered that has not been here before."""
        given = OFFERED if self._given is None else self._given
        serves = self._agent.offers
        # An agent that is there counts, and without one the user does.
        if serves is None or (self._given is not None and not self._agent.follows):
            return given
        return given & (Feature(serves & OFFERED) | ALWAYS)

    def to(self, pid: int) -> Feature:
        """Return what the front-end of process `pid` is offered."""
        # QEMU asks for each queue pair.
        if self._told is None:
            self._told = OFFERED if pid == self._refuser else self.limit
        return self._told

    def left(self, pid: int, *, acknowledged: bool) -> bool:
        """Note that the front-end has disconnected.

        Args:
            pid: its process.
            acknowledged: whether it had acknowledged features.

        Returns:
            whether it was offered less than all, and will be offered all.
        """
        told, self._told = self._told, None
        if told not in (None, OFFERED) and not acknowledged:
            self._refuser = pid
            return True
        if acknowledged and pid != self._refuser:
            self._refuser = None
        return False

    def lacking(self, features: Feature) -> Feature:
        """Return which of these features the agent's data plane is said to lack."""
        serves = self._agent.offers
        return Feature(0) if serves is None else virtio.lacking(features, serves)

    def mismatch(self, features: Feature) -> str:
        """Return what lacks for a driver that has these features, and what to do.

        Empty if the agent does not say that anything lacks.
        """
        entry = self._agent.entry
        if not self._agent.idle or entry.state is not AgentState.MISMATCH:
            return ""
        names = ", ".join(virtio.names(self.lacking(features)))
        what = f"lacks {names}, which" if names else f"({entry.message}) lacks what"
        return (
            f"the data plane {entry.data_plane or 'of the agent'} {what} the master's "
            f"driver has acknowledged: {ADVICE}"
        )

    def new_mismatch(self, features: Feature) -> str:
        """Return the same if it is another than the last time."""
        before, self._mismatch = self._mismatch, self.mismatch(features)
        return self._mismatch if self._mismatch != before else ""
