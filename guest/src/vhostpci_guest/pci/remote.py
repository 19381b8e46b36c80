# SPDX-License-Identifier: Apache-2.0
"""The kernel as an agent without privileges sees it: a helper does what needs root."""

from collections.abc import Iterable
from pathlib import Path

from ..privileges.channel import Channel
from .hold import Holder
from .kernel import System
from .orders import (
    ALL,
    MAPPED_BY,
    MODPROBE,
    OPEN,
    OPEN_ATTRIBUTE,
    SIGNER,
    USERS,
    WRITE,
)


class RemoteSystem(System):
    """A `System` that orders from a helper what only root may do (pci/orders.py)."""

    def __init__(self, channel: Channel, holder: Holder) -> None:
        super().__init__()
        self._channel = channel
        self._holder = holder

    def hold(self, name: str, fd: int) -> None:
        """Have a copy held by the helper that outlives us."""
        self._holder.hold(name, fd)

    def let_close(self, name: str) -> None:
        """Have that helper close it."""
        self._holder.let_close(name)

    def write(self, path: Path, text: str, claim: int | None = None) -> None:
        """Have an attribute written, of a device that we have claimed."""
        self._channel.ask(WRITE, str(path), text, fd=claim)

    def open(self, node: Path) -> int:
        """Have a device node opened."""
        return self._fd(OPEN, node)

    def open_attribute(self, path: Path, *, write: bool = False) -> int:
        """Have a file of sysfs opened; the helper knows which one is written."""
        return self._fd(OPEN_ATTRIBUTE, path)

    def _fd(self, order: str, path: Path) -> int:
        fd = self._channel.ask(order, str(path)).fd
        if fd is None:
            raise ValueError(f"{order} {path}: the helper sent no descriptor")
        return fd

    def modprobe(self, module: str, *, dry: bool = False) -> str | None:
        """Have modprobe run for a module."""
        value = self._channel.ask(MODPROBE, module, int(dry)).value
        return None if value is None else str(value)

    def signer(self, module: str) -> str | None:
        """Ask who signed a module."""
        value = self._channel.ask(SIGNER, module).value
        return None if value is None else str(value)

    def users(self, nodes: Iterable[Path]) -> list[str]:
        """Have the processes looked for that have nodes open."""
        found = self._channel.ask(USERS, [str(node) for node in nodes]).value
        return list(found) if isinstance(found, list) else []

    def mapped_by(self, fd: int, processes: Iterable[int] | None) -> list[str]:
        """Ask which of some processes have a file mapped."""
        numbers = [ALL] if processes is None else [str(number) for number in processes]
        found = self._channel.ask(MAPPED_BY, numbers, fd=fd).value
        return list(found) if isinstance(found, list) else []
