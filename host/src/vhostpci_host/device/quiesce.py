# SPDX-License-Identifier: Apache-2.0
"""The wait until the agent has stopped touching rings.

In a quiesce the front-end has no answer until the wait ends, and QEMU waits for the
answer with its big lock held: the whole master VM stands still.  So the wait is short,
and bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from ..interfaces import Loop, Timer

QUIESCE = 1.0
"""Seconds to wait for the agent; in a quiesce the master's QEMU stands still."""
POLL = 0.002
"""Seconds between two looks at what the agent says, while we wait for it."""


class Outcome(Enum):
    """How a wait for the agent ended."""

    STOPPED = auto()
    """The agent says that it has stopped the rings."""
    LATE = auto()
    """The agent has said nothing within `QUIESCE` seconds."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    generation: int
    deadline: float
    rings: frozenset[int]


class AgentWait:
    """Waits for the agent of one device, for one set of rings at a time.

    Args:
        loop: calls `look` back.
        look: looks at what the agent says, and calls `outcome` with it.
    """

    def __init__(self, loop: Loop, look: Callable[[], None]) -> None:
        self._loop = loop
        self._look = look
        self._waiting: _Waiting | None = None
        self._timer: Timer | None = None

    @property
    def active(self) -> bool:
        """Whether a wait has begun and not ended."""
        return self._waiting is not None

    @property
    def rings(self) -> frozenset[int]:
        """The rings that the agent has to stop; none without a wait."""
        return self._waiting.rings if self._waiting else frozenset()

    @property
    def generation(self) -> int:
        """The generation that tells the agent to stop; 0 without a wait."""
        return self._waiting.generation if self._waiting else 0

    def begin(self, generation: int, rings: frozenset[int]) -> None:
        """Wait until the agent has reached `generation`, in which `rings` are stopped.

        Args:
            generation: as it was published.
            rings: indexes, told back by `rings` when the wait ends.
        """
        assert self._waiting is None, "one wait at a time"
        self._waiting = _Waiting(generation, self._loop.time() + QUIESCE, rings)
        self._timer = self._loop.call_later(POLL, self._poll)

    def _poll(self) -> None:
        # An agent without interrupts may have no doorbell that reaches us either (its
        # QEMU may not have read of our peer yet), so do not rely on the doorbell alone.
        self._timer = self._loop.call_later(POLL, self._poll)
        self._look()

    def outcome(self, reached: int) -> Outcome | None:
        """Return how the wait ends, given the generation that the agent has reached.

        None: the wait goes on, or there is none.
        """
        waiting = self._waiting
        if waiting is None:
            return None
        if reached >= waiting.generation:
            return Outcome.STOPPED
        if self._loop.time() >= waiting.deadline:
            return Outcome.LATE
        return None

    def end(self) -> None:
        """End the wait; a no-op without one."""
        self._waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
