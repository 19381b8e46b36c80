# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the metadata region while the other side writes it too.

Theory of operation.  The daemon's part of the region is a seqlock.  `generation` is odd
while the daemon writes.  A reader that sees an even value, copies the part, and then
sees the same value again has a consistent copy.  The agent's part needs no lock: the
daemon decides by one 64-bit word of it, `Agent.generation`, which is written last.

Every store and load whose order matters is one aligned 64-bit word, through
`memoryview.cast("Q")`: CPython copies such a word with one instruction.  At each line
that says "order" is the barrier (`barriers.py`) that makes the order, for the
processor; it is no instruction on x86-64.  (CPython calls a function that the compiler
cannot see into between any two, so the compiler does not change the order either.)
"""

import sys
from dataclasses import replace

from . import metadata as md
from .about import About
from .barriers import Barriers, installed_barriers
from .position import Position
from .wire import ProtocolError

# How often a reader tries to get a copy.  The daemon publishes within a millisecond; if
# it takes longer, it was preempted or killed while it wrote, or has published nothing
# yet, and it is better to look again later than to spin.
_RETRIES = 1000
_MAGIC_WORD = int.from_bytes(md.MAGIC, sys.byteorder)


class Metadata:
    """The 64 KiB of one metadata region, for the daemon or for the agent.

    Args:
        view: writable bytes, `metadata.SIZE` long, usually a slice of a mapping.
        barriers: this machine's; tests have others.

    Raises:
        ValueError: the view has another length, or the machine is big-endian.
        NoBarriers: this machine needs barriers and has none.
    """

    def __init__(self, view: memoryview, barriers: Barriers | None = None) -> None:
        # The words that are stored alone have the machine's byte order, all other
        # fields are packed as little-endian: on other machines the two would differ.
        if len(view) != md.SIZE or sys.byteorder != "little":
            raise ValueError(f"a metadata region has {md.SIZE:#x} bytes")
        self._barriers = installed_barriers() if barriers is None else barriers
        self._view = view.cast("B")
        self._words = self._view.cast("Q")
        self._agent = self._view[md.AGENT : md.AGENT + md.Agent.layout.size]
        # The daemon's own count.  It never reads its generation back: the slave can
        # write the region, and could make it go backwards.
        self._generation = 0

    def release(self) -> None:
        """Release the memoryviews; a mapping that has any cannot be closed."""
        self._words.release()
        self._agent.release()
        self._view.release()

    def _word(self, offset: int) -> int:
        return self._words[offset // 8]

    def _set_word(self, offset: int, value: int) -> None:
        self._words[offset // 8] = value

    def _write(self, offset: int, data: bytes) -> None:
        self._view[offset : offset + len(data)] = data

    def _read(self, offset: int, size: int) -> bytes:
        return bytes(self._view[offset : offset + size])

    # The daemon's side.

    def format(self) -> None:
        """Write the header and clear the rest of the daemon's part.

        The generation is odd until the first `publish`, so nothing is read before.
        """
        # A region that an earlier daemon left has a generation that an agent may have
        # answered.  Starting above it keeps that answer from counting as one to us.
        # The remainder bounds what a slave wrote there, so that it cannot overflow.
        before = self._generation or self._word(md.GENERATION_OFFSET) % 2**62
        self._generation = before | 1
        # Order: odd before anything is cleared, as in `publish`.
        self._set_word(md.GENERATION_OFFSET, self._generation)
        self._barriers.barrier_release()
        self._write(md.DEVICE, bytes(md.DAEMON_END - md.DEVICE))
        header = md.Header(md.MAGIC, md.VERSION, md.SIZE, self._generation, 1)
        self._write(md.HEADER, bytes(header))

    def resume(self, generation: int) -> None:
        """Go on with a region that a daemon before us has written.

        Args:
            generation: an even one that it has not gone beyond.
        """
        # Not the one in the region, which the slave can write.  What lies there stays
        # valid, or half written if that daemon was killed, until the next `publish`.
        self._generation = generation

    def formatted(self) -> bool:
        """Whether the region still begins with the magic that `format` wrote.

        It does not after another process has cut the file: the daemon asks this to
        find out whether it must write everything again.
        """
        return self._word(md.HEADER) == _MAGIC_WORD

    def publish(
        self,
        device: md.Device,
        regions: tuple[md.Region, ...],
        rings: tuple[md.Ring, ...],
        confined: md.Confined = md.NOT_CONFINED,
    ) -> int:
        """Write the daemon's part; return the new, even generation."""
        device = replace(device, region_count=len(regions), ring_count=len(rings))
        # Order: odd before the first byte changes.  Pairs with the second load of the
        # generation in `snapshot`: a reader whose copy overlaps these stores sees it.
        # (After `format` it is odd already.)
        self._generation |= 1
        self._set_word(md.GENERATION_OFFSET, self._generation)
        self._barriers.barrier_release()
        self._write(md.DEVICE, bytes(device))
        self._write(md.CONFINED, bytes(confined))
        self._write(md.REGIONS, b"".join(map(bytes, regions)))
        # The ring driver (C) also reads the `session` of a ring outside the lock, to
        # stop as early as possible.  It compares that word with its own and reads no
        # other, so it needs no order between `session` and the ring's other fields.
        self._write(md.RINGS, b"".join(map(bytes, rings)))
        # Order: even after the last byte.  Pairs with the first load in `snapshot`: a
        # reader that sees this value sees everything that was stored before it.
        self._generation += 1
        self._barriers.barrier_release()
        self._set_word(md.GENERATION_OFFSET, self._generation)
        return self._generation

    def beat(self) -> None:
        """Raise the heartbeat, so that the agent sees that the daemon lives."""
        # Outside the seqlock, and read back although the slave may have written it:
        # the agent only asks whether the number has changed.
        beat = self._word(md.HEARTBEAT_OFFSET)
        self._set_word(md.HEARTBEAT_OFFSET, (beat + 1) % 2**64)

    def agent_bytes(self) -> bytes:
        """Copy the agent's own entry, for `metadata.Agent.parse`."""
        # Not parsed here: the daemon parses a copy only if it differs from the last
        # one, and must not read the region again, which the agent writes meanwhile.
        data = self._agent.tobytes()
        # Order: the generation in here before what the agent wrote before it: its
        # rings' entries, and the used index of a ring that it has stopped.  Pairs with
        # the last store in `write_agent`.
        self._barriers.barrier_acquire()
        return data

    def agent_ring_bytes(self, count: int) -> bytes:
        """Copy the agent's entries of the first `count` rings, one after the other."""
        return self._read(md.AGENT_RINGS, count * md.AgentRing.layout.size)

    def agent_ring(self, index: int) -> md.AgentRing:
        """Read the agent's entry of ring `index`.

        Raises:
            ProtocolError: the entry is invalid.
        """
        size = md.AgentRing.layout.size
        return md.AgentRing.parse(self._read(md.AGENT_RINGS + index * size, size))

    def position(self, index: int) -> Position:
        """Read where packed ring `index` stands; the entry may say anything."""
        size = Position.layout.size
        return Position.parse(self._read(md.POSITIONS + index * size, size))

    def about(self) -> About:
        """Read what the agent tells people of itself; it may say anything."""
        return About.parse(self._read(md.ABOUT, About.layout.size))

    # The agent's side.

    def header(self) -> md.Header:
        """Read the header.

        Raises:
            ProtocolError: the memory has no metadata region of version 1.
        """
        return md.Header.parse(self._read(md.HEADER, md.Header.layout.size))

    def generation(self) -> int:
        """Read the generation alone: one load shows whether anything changed."""
        return self._word(md.GENERATION_OFFSET)

    def heartbeat(self) -> int:
        """Read the daemon's heartbeat."""
        return self._word(md.HEARTBEAT_OFFSET)

    def snapshot(self) -> md.Snapshot | None:
        """Return a consistent copy of the daemon's part.

        None if the daemon was writing it all the time: then try again later.

        Raises:
            ProtocolError: the copy is consistent, but an entry is invalid.
        """
        for _ in range(_RETRIES):
            # Order: this load before the copy.  Pairs with the last store in `publish`.
            before = self.generation()
            if before % 2:
                # Do not copy 16 KiB that would be thrown away: through sysfs or vfio
                # on AMD the window is uncached, and each load goes over the bus.
                continue
            self._barriers.barrier_acquire()
            data = self._read(0, md.DAEMON_END)
            # Order: this load after the copy.  Pairs with the first store in `publish`.
            self._barriers.barrier_acquire()
            if self.generation() == before:
                self.header()
                return md.Snapshot.parse(before, data)
        return None

    def write_agent(self, agent: md.Agent) -> None:
        """Write the agent's own entry, its generation last."""
        data = bytes(agent)
        generation = md.AGENT_GENERATION_OFFSET - md.AGENT
        after = generation + 8
        self._write(md.AGENT, data[:generation])
        self._write(md.AGENT + after, data[after:])
        # Order: the generation after everything else, the entries of the rings too,
        # which the caller has written before.  The daemon takes this word as the
        # answer to its own generation: from here on it gives rings to other owners.
        # The workers' stores come before, too: a mutex has handed them to this thread.
        self._barriers.barrier_release()
        self._set_word(md.AGENT_GENERATION_OFFSET, agent.generation)

    def write_agent_ring(self, index: int, ring: md.AgentRing) -> None:
        """Write the agent's entry of ring `index`; call this before `write_agent`."""
        self._write(md.AGENT_RINGS + index * md.AgentRing.layout.size, bytes(ring))

    def write_about(self, about: About) -> None:
        """Write what the agent tells people of itself."""
        self._write(md.ABOUT, bytes(about))

    def write_position(self, index: int, position: Position) -> None:
        """Write where packed ring `index` stands; call this before `write_agent`.

        Not while the ring runs: the ring driver writes it then.
        """
        self._write(md.POSITIONS + index * Position.layout.size, bytes(position))


def find(window: memoryview) -> memoryview:
    """Return the metadata region of window 0: its last 64 KiB.

    Raises:
        ProtocolError: the window is smaller than a metadata region.
    """
    if len(window) < md.SIZE:
        raise ProtocolError(
            f"window of {len(window):#x} bytes is smaller than the metadata "
            f"({md.SIZE:#x}): not a vhostpci device",
            code="P001",
        )
    return window[len(window) - md.SIZE :]
