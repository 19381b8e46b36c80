# SPDX-License-Identifier: Apache-2.0
"""A fake agent, as the daemon sees it: it answers generations and moves no packets."""

import mmap
import os
from typing import Self

from tests.fakes.loop import ManualLoop
from tests.fakes.ports import RecordedSlave
from vhostpci_shared import access
from vhostpci_shared import metadata as md

BEAT = 0.25


class FakeAgent:
    """An agent in the slave VM; it beats and answers while `loop` advances.

    `window` is the descriptor of window 0.
    """

    def __init__(self, loop: ManualLoop, slave: RecordedSlave, window: int) -> None:
        offset = os.fstat(window).st_size - md.SIZE
        self._map = mmap.mmap(window, md.SIZE, offset=offset)
        self.metadata = access.Metadata(memoryview(self._map))
        self.entry = md.Agent(
            instance=1, state=md.AgentState.READY, vectors=3, binding="fake"
        )
        self.answers = True
        self.beats = True
        self.asked: list[int] = []
        """The generation at each interrupt of vector 0."""
        self._loop = loop
        self._slave = slave
        self._vector = slave.own[md.METADATA_VECTOR]
        loop.add_reader(self._vector, self._interrupt)
        self._timer = loop.call_later(0, self._beat)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> md.Snapshot:
        """Return the current contents of the metadata."""
        snapshot = self.metadata.snapshot()
        assert snapshot is not None, "the daemon is writing"
        return snapshot

    def say(self, **changes: object) -> None:
        """Change the agent's entry in the metadata, and ring the daemon's doorbell."""
        fields = {name: getattr(self.entry, name) for name in self.entry.__slots__}
        self.entry = md.Agent(**(fields | changes))
        self.metadata.write_agent(self.entry)
        self._slave.ring(md.DAEMON_PEER, 0)

    def say_ring(self, index: int, state: md.AgentRingState) -> None:
        """Write the state of a ring in its current session, and ring the doorbell."""
        session = self.snapshot().rings[index].session
        self.metadata.write_agent_ring(
            index, md.AgentRing(session=session, state=state)
        )
        self._slave.ring(md.DAEMON_PEER, 0)

    def answer(self) -> None:
        """Answer the current generation."""
        self.say(generation=self.metadata.generation())

    def _interrupt(self) -> None:
        self._slave.interrupted(md.METADATA_VECTOR)
        self.asked.append(self.metadata.generation())
        if self.answers:
            self.answer()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(BEAT, self._beat)
        if self.beats:
            self.say(heartbeat=self.entry.heartbeat + 1)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._vector)
        self.metadata.release()
        self._map.close()
