# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves of a device's memory files; descriptors have names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArenaState:
    """The arena of a device."""

    file: str
    """The descriptor that has the lock."""
    had: bool
    """Whether a master has had it."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A memory file of the master's in attach mode."""

    number: int
    size: int
    file: str


@dataclass(frozen=True, slots=True)
class AttachedState:
    """The files of a device in attach mode."""

    metadata: str
    files: tuple[FileState, ...]
