# SPDX-License-Identifier: Apache-2.0
"""What a device needs of the world: a loop that calls back, and two connections.

asyncio's event loop is such a `Loop`, and the daemon has the connections; a test has
its own of each, and a clock that it turns by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Timer(Protocol):
    """Something that was asked to happen later."""

    def cancel(self) -> None:
        """Have it not happen."""


class Loop(Protocol):
    """The part of asyncio's event loop that a device needs."""

    def time(self) -> float:
        """Return the seconds of a clock that never goes back."""
        ...

    def call_later(self, delay: float, callback: Callable[[], Any], /) -> Timer:
        """Call `callback` once, after `delay` seconds."""
        ...

    def add_reader(self, fd: int, callback: Callable[[], Any], /) -> object:
        """Call `callback` whenever `fd` can be read."""

    def remove_reader(self, fd: int, /) -> object:
        """Call it no more."""


class MasterPort(Protocol):
    """The front-end's connection, as the device sees it."""

    @property
    def pid(self) -> int:
        """The front-end's process, 0 if unknown."""
        ...

    def send(self, data: bytes) -> None:
        """Send a reply."""

    def pause(self) -> None:
        """Read no message until `resume`."""

    def resume(self) -> None:
        """Read messages again."""

    def drop(self, reason: str) -> None:
        """Close it for what it did; the device is told by `master_gone`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """A window that the slave VM is to have, as an `ivshmem-doorbell` device."""

    window: int
    """Its IVPosition; 0 is the device with the metadata and the doorbells."""
    socket: Path
    vectors: int
    size: int
    """Bytes of its BAR 2, a power of two."""


class Plugger(Protocol):
    """Who plugs a device's windows into the running slave VM."""

    def want(self, plugs: frozenset[Plug]) -> None:
        """Have these plugged, and no others, as soon as the slave lets us."""

    def status(self) -> dict[str, Any]:
        """Return which are plugged, and what stands in the way, as JSON."""
        ...

    async def close(self) -> None:
        """Unplug all, within some seconds."""
