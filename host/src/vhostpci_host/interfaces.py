# SPDX-License-Identifier: Apache-2.0
"""What the layers ask of each other: a loop, the front-end's connection, a plugger.

asyncio's event loop is a `Loop`.  The unit tests have one whose clock they turn by
hand, and connections that record what is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Json = dict[str, Any]
FAILED = "failed"
"""The state, in a status, of a device that a daemon has closed because of an error."""
UNPLUG = 5.0
"""Seconds for a slave VM's guest to release its windows when a device is removed."""


def never() -> bool:
    """Return False: the default of a question to which no object has an answer."""
    return False


def nothing() -> None:
    """Do nothing: what is called on a change if that is of no interest."""


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Do not call back."""


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
        """Stop calling back for `fd`; a no-op for one that is not watched."""


class MasterPort(Protocol):
    """The front-end's connection, as the device sees it."""

    @property
    def pid(self) -> int:
        """The front-end's process, 0 if unknown."""
        ...

    @property
    def returning(self) -> bool:
        """Whether its process was here lately and did nothing useful."""
        ...

    @property
    def hangs(self) -> str:
        """How the front-end hangs, such as "says nothing"; empty if it does not."""
        ...

    def send(self, data: bytes) -> None:
        """Send a reply."""

    def pause(self) -> None:
        """Read no message until `resume`."""

    def resume(self) -> None:
        """Read messages again."""

    def drop(self, reason: str) -> None:
        """Close the connection for `reason`; `Device.master_gone` is called within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """A window to plug into the slave VM, as an `ivshmem-doorbell` device."""

    window: int
    """Its IVPosition; 0 is the device with the metadata and the doorbells."""
    socket: Path
    vectors: int
    size: int
    """Bytes of its BAR 2, a power of two."""


class Plugger(Protocol):
    """Hot-plugs the windows of one device into its running slave VM."""

    def want(self, plugs: frozenset[Plug]) -> None:
        """Plug these and unplug all others, as soon as the slave VM's guest allows."""

    @property
    def plugged(self) -> frozenset[int]:
        """The windows that are plugged, as it was seen last."""
        ...

    def adopt(self, plugs: frozenset[Plug], changed: Callable[[], None]) -> None:
        """Take over what a daemon before us has plugged, before the first `want`.

        Args:
            plugs: which windows; none without such a daemon.
            changed: called when `plugged` has changed.
        """

    def status(self) -> dict[str, Any]:
        """Return which windows are plugged, and what went wrong, as JSON."""
        ...

    async def close(self) -> None:
        """Unplug every window, within some seconds."""
