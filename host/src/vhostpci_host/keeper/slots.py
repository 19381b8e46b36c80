# SPDX-License-Identifier: Apache-2.0
"""The memory in which a device's state survives its daemon.

Theory of operation.  A memfd has two slots, and a text is written into the one with the
older text.  A slot counts only if its checksum is right, so a daemon that is killed
while it writes leaves the text before.  Beside the slots there are *marks*, numbers
that are stored with one instruction each: what has been sent or read since the text was
written.

    0x0000  magic, version, size of a slot
    0x0040  marks
    0x1000  slot 0: sequence number, length and checksum of a text, and the text
            slot 1

The file is sealed against cutting, so no access to the mapping can fail.
"""

import mmap
import zlib
from contextlib import ExitStack
from enum import IntEnum
from struct import Struct
from typing import Self

from .. import sealed_memfd
from ..fds import Fd

MAGIC = b"VHPCSTAT"
VERSION = 1
"""Of this layout and of the texts: a daemon of another version begins without them."""
SLOT_SIZE = 1 << 20
"""More than the state of a device with 64 rings and 256 regions takes."""
_HEADER = Struct("<8sII")
_MARKS = 0x40
_FIRST_SLOT = 0x1000
_ENTRY = Struct("<QII")
_SIZE = _FIRST_SLOT + 2 * SLOT_SIZE


class StateError(Exception):
    """What a daemon has left does not fit together: its successor begins without it."""


class Mark(IntEnum):
    """A number beside the slots."""

    CONSUMED = 0
    """How many messages of the front-end were read from its socket."""
    REPLYING = 1
    """The number of the last message whose reply was about to be sent."""
    SENT = 2
    """How many messages were sent to the slave."""
    SENDING = 3
    """One more than SENT while a message is being sent: then it may have been."""
    IN_PIECES = 4
    """Whether a part of a message was read, and the rest has not arrived."""


class StateFile:
    """The memfd of one device's state.

    Args:
        file: with the layout above; closed with this object.
    """

    def __init__(self, file: Fd) -> None:
        self.file = file
        self._map = mmap.mmap(file.fileno(), _SIZE)
        view = memoryview(self._map)
        self._bytes = view
        self._marks = view[_MARKS : _MARKS + 8 * len(Mark)].cast("Q")
        self._sequence, self._slot = 0, 1

    @classmethod
    def new(cls) -> Self:
        """Make one without a text.

        Raises:
            OSError: there is no memory, or no descriptor.
        """
        with ExitStack() as undo:
            file = undo.enter_context(sealed_memfd.make("vhostpci-state", _SIZE))
            made = cls(file)
            undo.pop_all()
        made._bytes[: _HEADER.size] = _HEADER.pack(MAGIC, VERSION, SLOT_SIZE)
        return made

    @classmethod
    def left(cls, file: Fd) -> Self:
        """Open what another daemon has left.

        Raises:
            StateError: it is no such file, or one of another version.
        """
        if problem := sealed_memfd.problem(file, _SIZE):
            raise StateError(problem)
        found = cls(file)
        header = _HEADER.unpack(found._bytes[: _HEADER.size])
        if header != (MAGIC, VERSION, SLOT_SIZE):
            found.release()
            raise StateError(f"its header is {header}, so it is of another version")
        return found

    def read(self) -> bytes:
        """Return the newest text.

        Raises:
            StateError: there is none.
        """
        found = [(*self._entry(slot), slot) for slot in (0, 1)]
        sequence, text, slot = max(found)
        if not sequence:
            raise StateError("it has no text: the daemon ended before it wrote one")
        self._sequence, self._slot = sequence, slot
        return text

    def _entry(self, slot: int) -> tuple[int, bytes]:
        """Return the sequence number and the text of a slot; 0 for one that is torn."""
        start = _FIRST_SLOT + slot * SLOT_SIZE
        head = bytes(self._bytes[start : start + _ENTRY.size])
        sequence, length, checksum = _ENTRY.unpack(head)
        if length > SLOT_SIZE - _ENTRY.size:
            return 0, b""
        text = bytes(self._bytes[start + _ENTRY.size :][:length])
        right = zlib.crc32(text, sequence & 0xFFFFFFFF) == checksum
        return (sequence, text) if right else (0, b"")

    def write(self, text: bytes) -> None:
        """Write a text; the one before stays until this one is complete.

        Raises:
            StateError: it is longer than a slot.
        """
        if len(text) > SLOT_SIZE - _ENTRY.size:
            raise StateError(f"a state of {len(text)} bytes is too long to keep")
        self._sequence, self._slot = self._sequence + 1, 1 - self._slot
        start = _FIRST_SLOT + self._slot * SLOT_SIZE
        body = start + _ENTRY.size
        # The text first: with the entry of an older text before it, its checksum is
        # wrong.
        self._bytes[body : body + len(text)] = text
        checksum = zlib.crc32(text, self._sequence & 0xFFFFFFFF)
        self._bytes[start:body] = _ENTRY.pack(self._sequence, len(text), checksum)

    def mark(self, mark: Mark) -> int:
        """Return a mark's value."""
        return self._marks[mark]

    def set_mark(self, mark: Mark, value: int) -> None:
        """Set a mark: one store, which happens or does not."""
        self._marks[mark] = value

    def release(self) -> None:
        """Unmap the file, and leave it open."""
        self._marks.release()
        self._bytes.release()
        self._map.close()

    def close(self) -> None:
        """Unmap the file, and close it."""
        self.release()
        self.file.close()
