# SPDX-License-Identifier: Apache-2.0
"""The metadata region in memory that the other side writes at the same time.

Theory of operation.  The daemon's part is a seqlock: `generation` is odd while
the daemon writes, so a reader that sees an even value, copies the part, and sees
the same value again has a consistent copy.  The agent's part needs no lock: the
daemon acts on single 64-bit words there.

A generation, heartbeat or session is one aligned 64-bit word, stored and loaded
whole by `memoryview.cast("Q")`.  Order between the stores rests on x86-64, where
stores are seen in program order and CPython puts opaque calls between them; it is
the one architecture that vhostpci supports today.
"""

import sys
from dataclasses import replace

from . import metadata as md
from .wire import ProtocolError

_RETRIES = 1000


class Metadata:
    """The 64 KiB of one metadata region.

    Args:
        view: writable bytes, `metadata.SIZE` long, usually a slice of a mapping.

    Raises:
        ValueError: the view has another length.
    """

    def __init__(self, view: memoryview) -> None:
        if len(view) != md.SIZE or sys.byteorder != "little":
            raise ValueError(f"a metadata region has {md.SIZE:#x} bytes")
        self._view = view.cast("B")
        self._words = self._view.cast("Q")
        self._generation = 0

    def release(self) -> None:
        """Let go of the mapping, so that it can be closed."""
        self._words.release()
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
        """Start the region anew; the generation goes on from what was there.

        It is odd until the first `publish`.  A second time it goes on from what we
        wrote last, whatever has become of that.
        """
        before = self._generation or self._word(md.GENERATION_OFFSET) % 2**62
        self._generation = before | 1
        self._set_word(md.GENERATION_OFFSET, self._generation)
        self._write(md.DEVICE, bytes(md.DAEMON_END - md.DEVICE))
        header = md.Header(md.MAGIC, md.VERSION, md.SIZE, self._generation, 1)
        self._write(md.HEADER, bytes(header))

    def formatted(self) -> bool:
        """Whether it still begins as `format` has left it."""
        return self._read(md.HEADER, len(md.MAGIC)) == md.MAGIC

    def publish(
        self,
        device: md.Device,
        regions: tuple[md.Region, ...],
        rings: tuple[md.Ring, ...],
    ) -> int:
        """Write the daemon's part; return the new, even generation.

        The slave can write here too, so nothing is read back.
        """
        device = replace(device, region_count=len(regions), ring_count=len(rings))
        self._generation |= 1
        self._set_word(md.GENERATION_OFFSET, self._generation)
        self._write(md.DEVICE, bytes(device))
        self._write(md.REGIONS, b"".join(map(bytes, regions)))
        self._write(md.RINGS, b"".join(map(bytes, rings)))
        self._generation += 1
        self._set_word(md.GENERATION_OFFSET, self._generation)
        return self._generation

    def beat(self) -> None:
        """Say that the daemon lives."""
        beat = self._word(md.HEARTBEAT_OFFSET)
        self._set_word(md.HEARTBEAT_OFFSET, (beat + 1) % 2**64)

    def agent(self) -> md.Agent:
        """Read what the agent says of itself.

        Raises:
            ProtocolError: it says what nobody can.
        """
        return md.Agent.parse(self._read(md.AGENT, md.Agent.layout.size))

    def agent_ring(self, index: int) -> md.AgentRing:
        """Read where the agent stands in ring `index`.

        Raises:
            ProtocolError: it says what nobody can.
        """
        size = md.AgentRing.layout.size
        return md.AgentRing.parse(self._read(md.AGENT_RINGS + index * size, size))

    # The agent's side.

    def header(self) -> md.Header:
        """Read the header.

        Raises:
            ProtocolError: it is no metadata region of our version.
        """
        return md.Header.parse(self._read(md.HEADER, md.Header.layout.size))

    def generation(self) -> int:
        """Read the generation alone: one load, to see whether anything changed."""
        return self._word(md.GENERATION_OFFSET)

    def heartbeat(self) -> int:
        """Read the daemon's heartbeat."""
        return self._word(md.HEARTBEAT_OFFSET)

    def snapshot(self) -> md.Snapshot | None:
        """Copy the daemon's part; None while it is being written (try again).

        Raises:
            ProtocolError: the copy is consistent, and impossible.
        """
        for _ in range(_RETRIES):
            before = self.generation()
            if before % 2:
                continue  # a copy is dear where the window is not cached
            data = self._read(0, md.DAEMON_END)
            if self.generation() == before:
                self.header()
                return md.Snapshot.parse(before, data)
        return None

    def write_agent(self, agent: md.Agent) -> None:
        """Write the agent's own entry, its generation last.

        The daemon takes the generation for an answer, so all that belongs to
        the answer is in place before it.
        """
        data = bytes(agent)
        at = md.AGENT + 16
        self._write(md.AGENT, data[:16])
        self._write(at + 8, data[24:])
        self._set_word(at, agent.generation)

    def write_agent_ring(self, index: int, ring: md.AgentRing) -> None:
        """Write the agent's entry of ring `index`."""
        self._write(md.AGENT_RINGS + index * md.AgentRing.layout.size, bytes(ring))


def find(window: memoryview) -> memoryview:
    """Return the metadata region of window 0: its last 64 KiB.

    Raises:
        ProtocolError: the window is too small to have one.
    """
    if len(window) < md.SIZE:
        raise ProtocolError(
            f"window of {len(window):#x} bytes is smaller than the metadata "
            f"({md.SIZE:#x}): not a vhostpci device"
        )
    return window[len(window) - md.SIZE :]
