# SPDX-License-Identifier: Apache-2.0
"""Rings that are given to the agent, and taken from it again.

There are two waits for an agent that has rings to stop.  The front-end has no answer
until the first one ends.  The other is for rings that the front-end has disabled, and
no front-end waits for it.
"""

from collections.abc import Callable, Iterable

from ..interfaces import Loop
from ..vhost_user.front_end_setup import FrontEndSetup
from .agent_view import AgentView
from .peer_log import PeerLog
from .publisher import Publisher
from .quiesce import QUIESCE, AgentWait, Outcome
from .ring_lease import RingState


class RingHandover:
    """Gives the rings of one device to the agent, and takes them back.

    Args:
        publisher: has the leases of the rings.
        agent: what the agent says.
        loop: calls `look` back.
        peer_log: logs which rings start and stop.
        sample: reads what the agent says now.
        publish: shows the agent what is new.
        look: looks at the agent while it is waited for, and asks `is_late`.
    """

    def __init__(
        self,
        publisher: Publisher,
        agent: AgentView,
        loop: Loop,
        peer_log: PeerLog,
        *,
        sample: Callable[[], None],
        publish: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        self._publisher = publisher
        self._agent = agent
        self._loop = loop
        self._log = peer_log
        self._sample = sample
        self._publish = publish
        self.answer = AgentWait(loop, look)
        """The wait during which the front-end has no answer."""
        self.disabled = AgentWait(loop, look)
        """The wait for rings that the front-end has disabled."""

    def start(self, setup: FrontEndSetup) -> list[int]:
        """Give the agent the rings that the front-end runs; return the new ones."""
        self._find_positions(setup)
        started = self._publisher.start(setup, self._loop.time())
        for index in started:
            base, used = setup.rings[index].base, setup.used_index(index)
            if base != used:
                self._log.warn(
                    f"ring {index} is to start at {base}, but its used index is {used}",
                    f"base of ring {index}",
                )
        if started:
            self._log.info(f"started rings {started}", "started rings")
        return started

    def _find_positions(self, setup: FrontEndSetup) -> None:
        """Find where packed rings go on that a front-end starts after a break."""
        for index, lease in enumerate(self._publisher.leases):
            if lease.state is not RingState.STOPPED or not setup.runs(index):
                continue
            text = setup.find_position(index)
            # Without an agent there may be one in a moment that says where it stands.
            if text and (self._agent.present or not setup.rings[index].lost):
                self._log.warn(text, f"position of ring {index}")

    def stop(self, indexes: frozenset[int]) -> bool:
        """Take rings from the agent; return whether to wait until it has stopped."""
        held = self._publisher.held(indexes)
        return bool(held) and self._take(held, self.answer)

    def stop_disabled(self, setup: FrontEndSetup) -> None:
        """Take from the agent what the front-end has disabled; it does not wait."""
        if self.disabled.active:
            return  # the device settles again when that wait ends
        rings = self._publisher.disabled(setup)
        if rings and not self._take(rings, self.disabled):
            setup.note_stopped(rings)

    def _take(self, rings: frozenset[int], wait: AgentWait) -> bool:
        """Take rings from the agent; if there is one, begin `wait`, and return true."""
        self._sample()
        present = self._agent.present
        self._publisher.stop(rings, agent_present=present)
        self._publish()
        if not present:
            # An agent that starts rings says first that it is ready, and then looks
            # whether we have published: one of us sees what the other has written.
            self._sample()
            self._publish()
            present = self._agent.present
        if present:
            wait.begin(self._publisher.generation, rings)
        else:
            self._log_stopped(rings)
        return present

    def is_late(self, wait: AgentWait) -> bool | None:
        """Whether a wait ends because the agent is late; None if it does not end."""
        outcome = wait.outcome(self._agent.entry.generation)
        if outcome is Outcome.LATE:
            text = f"the agent did not stop within {QUIESCE:g} s; going on without it"
            self._log.warn(text, kind=text)
            self._agent.late_at = wait.generation
        return None if outcome is None else outcome is Outcome.LATE

    def end_answer(self) -> None:
        """End the wait for the front-end's answer: its rings have stopped."""
        rings = self.answer.rings
        self.answer.end()
        self._log_stopped(self._publisher.stopped(rings))

    def end_disabled(self, setup: FrontEndSetup | None) -> None:
        """End the wait for disabled rings, and note where these stand."""
        rings = self.disabled.rings
        self.disabled.end()
        # A ring that runs was stopped meanwhile, without an agent, and started again.
        rings = self._publisher.stopped(rings - self._publisher.running(rings))
        self._log_stopped(rings)
        if setup is not None:
            setup.note_stopped(rings)

    def end_all(self) -> None:
        """Take all rings at once, and wait for none: the front-end is gone."""
        self.answer.end()
        self.disabled.end()
        self._log_stopped(self._publisher.all_stopped())

    def _log_stopped(self, indexes: Iterable[int]) -> None:
        if rings := sorted(indexes):
            self._log.info(f"stopped rings {rings}", "stopped rings")
