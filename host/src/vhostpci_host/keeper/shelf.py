# SPDX-License-Identifier: Apache-2.0
"""What is kept for one device: its state, and the descriptors that the state names.

New descriptors are kept first, then the state is written that names them, and then the
old ones are forgotten.  So whenever the daemon is killed, all that the newest state
names is there.
"""

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from vhostpci_shared.wire import ProtocolError

from ..fds import Fd, HasNumber, Notifier
from .codec import encode
from .slots import Mark, StateError, StateFile
from .store import DescriptorStore, Keep

log = logging.getLogger(__name__)

STATE = "s"
"""The letter that the names of states begin with."""


class Shelf:
    """Keeps one device's state, and what it names.

    Args:
        store: keeps the descriptors.
        file: for the state; closed with this object.
        capture: returns the state as a dataclass, and keeps what it names.
    """

    def __init__(
        self,
        store: DescriptorStore,
        file: StateFile,
        capture: Callable[[Keep], object],
    ) -> None:
        self.file = file
        self._store = store
        self._capture = capture
        self.active = False
        """Whether `save` writes; not before all is there, and not while it closes."""
        self._text = b""
        self._used: set[str] = set()
        self._state_name = store.hold(file.file, STATE)

    @classmethod
    def new(cls, store: DescriptorStore, capture: Callable[[Keep], object]) -> Self:
        """Begin to keep a device.

        Raises:
            OSError: there is no memory, or no descriptor.
        """
        with ExitStack() as undo:
            file = StateFile.new()
            undo.callback(file.close)
            shelf = cls(store, file, capture)
            undo.pop_all()
        return shelf

    def save(self) -> None:
        """Keep the present state, if it differs from what is kept."""
        if not self.active:
            return
        try:
            self._write()
        except StateError as error:
            # A successor must not go on with an older state.
            log.error("nothing is kept of a device any more: %s", error)
            self.active = False
            self._forget()

    def _write(self) -> None:
        used: set[str] = set()

        def keep(fd: HasNumber) -> str:
            name = self._store.name_of(fd)
            if name is None or not (name in self._used or name in used):
                name = self._store.hold(fd)
                # One hold for this device, however often its state names it.
                if name in self._used or name in used:
                    self._store.release(name)
            used.add(name)
            return name

        text = encode(self._capture(keep))
        if text != self._text:
            self.file.write(text)
            self._text = text
        for name in self._used - used:
            self._store.release(name)
        self._used = used

    def mark(self, mark: Mark) -> int:
        """Return the value of a mark."""
        return self.file.mark(mark)

    def set_mark(self, mark: Mark, value: int) -> None:
        """Set a mark: one store into memory, which happens or does not."""
        self.file.set_mark(mark, value)

    def close(self) -> None:
        """Keep nothing of the device any more."""
        self.active = False
        self._forget()
        self.file.close()

    def _forget(self) -> None:
        # The state first: a successor finds nothing to go on with, or all.
        if self._state_name:
            self._store.release(self._state_name)
            self._state_name = ""
        for name in self._used:
            self._store.release(name)
        self._used = set()


class Left:
    """What an earlier daemon has left of one device.

    The descriptors stay the store's: each that is taken is a copy.

    Args:
        descriptors: all that were left, by name.
    """

    def __init__(self, descriptors: dict[str, Fd]) -> None:
        self._descriptors = descriptors

    def fd(self, name: str) -> Fd:
        """Return a copy of a descriptor.

        Raises:
            StateError: there is none of that name.
        """
        if name not in self._descriptors:
            raise StateError(f"descriptor {name} is missing")
        return self._descriptors[name].copy()

    def notifier(self, name: str | None) -> Notifier | None:
        """Return a copy of a notifier; None without a name.

        Raises:
            StateError: it is missing, or no notifier.
        """
        if name is None:
            return None
        with self.fd(name) as fd:
            try:
                return Notifier.adopt(fd)
            except ProtocolError as error:
                raise StateError(f"descriptor {name}: {error}") from error

    def eventfd(self, name: str) -> Notifier:
        """Return a copy of an eventfd.

        Raises:
            StateError: it is missing, or no eventfd.
        """
        found = self.notifier(name)
        assert found is not None, "a name"
        if not found.is_eventfd:
            found.close()
            raise StateError(f"descriptor {name} is no eventfd")
        return found

    def socket(self, name: str, *, listening: bool) -> socket.socket:
        """Return a copy of a Unix stream socket.

        Raises:
            StateError: it is missing, or no such socket.
        """
        with self.fd(name) as fd:
            try:
                # System calls: getsockname, getsockopt, socket(AF_UNIX).
                found = socket.socket(fileno=fd.fileno())
            except OSError as error:
                raise StateError(f"descriptor {name} is no socket") from error
            fd.detach()
        is_listening = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        kind = found.family, found.type, is_listening
        if kind != (socket.AF_UNIX, socket.SOCK_STREAM, listening):
            found.close()
            raise StateError(f"descriptor {name} is a socket of another kind: {kind}")
        found.setblocking(False)
        return found


__all__ = ["Left", "Mark", "Shelf", "StateError"]
