# SPDX-License-Identifier: Apache-2.0
"""The agent, as the daemon sees it: it answers generations, and moves no packet."""

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
        """The generations that it was interrupted for."""
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
        """What the daemon says now."""
        snapshot = self.metadata.snapshot()
        assert snapshot is not None, "the daemon is writing"
        return snapshot

    def say(self, **changes: object) -> None:
        """Change what the agent says of itself, and ring the daemon."""
        fields = {name: getattr(self.entry, name) for name in self.entry.__slots__}
        self.entry = md.Agent(**(fields | changes))
        self.metadata.write_agent(self.entry)
        self._slave.ring(md.DAEMON_PEER, 0)

    def say_ring(self, index: int, state: md.AgentRingState) -> None:
        """Say of a ring, in its present session, how it is."""
        session = self.snapshot().rings[index].session
        self.metadata.write_agent_ring(
            index, md.AgentRing(session=session, state=state)
        )
        self._slave.ring(md.DAEMON_PEER, 0)

    def answer(self) -> None:
        """Act by what the daemon says now."""
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
