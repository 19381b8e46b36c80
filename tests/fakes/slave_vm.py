# SPDX-License-Identifier: Apache-2.0
"""A fake slave VM (a `SlaveVm`) that follows the test."""

import asyncio
from collections import Counter

from vhostpci_host.hotplug.vm import PlugError, VmAway
from vhostpci_host.interfaces import Plug


class FakeVm:
    """A `SlaveVm` that keeps a set of windows; `steps` lists each plug and unplug."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.windows: set[int] = set()
        self.without_address: set[int] = set()
        self.why_no_address = ""
        self.looks = 0
        self.closed = False
        self.asked: Counter[int] = Counter()
        self._refused: set[int] = set()
        self._stubborn: set[int] = set()
        self._ended = asyncio.Event()
        self._error: Exception | None = None
        self._free = asyncio.Event()
        self._free.set()

    def refuse(self, *windows: int) -> None:
        """Refuse to plug exactly these windows from now on."""
        self._refused = set(windows)

    def refuse_to_unplug(self, *windows: int) -> None:
        """Refuse to unplug exactly these windows from now on."""
        self._stubborn = set(windows)

    def hang(self) -> None:
        """Leave each call waiting until `wake_up`."""
        self._free.clear()

    def wake_up(self) -> None:
        """Let the calls that wait, and all later ones, return."""
        self._free.set()

    def have_a_bug(self) -> None:
        """Raise RuntimeError, which no caller handles, from each call."""
        self.fail(RuntimeError("a bug of ours"))

    def fail(self, error: Exception | None) -> None:
        """Raise this error from each call; None: no more."""
        self._error = error

    def die(self) -> None:
        """Stop the VM; all plugged windows are lost."""
        self.windows.clear()
        self._ended.set()

    def come_back(self) -> None:
        """Start the VM again, without any window."""
        self._ended = asyncio.Event()

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        await self._free.wait()
        if self._error is not None:
            raise self._error
        if self._ended.is_set():
            raise VmAway("waiting for the slave VM")

    async def plugged(self, device: str) -> set[int]:
        self.looks += 1
        await self._answer()
        return set(self.windows)

    async def plug(self, device: str, plug: Plug) -> None:
        await self._answer()
        assert plug.window not in self.windows, "two devices would show one window"
        if plug.window in self._refused:
            raise PlugError(f"no root port is free for window {plug.window}")
        self.windows.add(plug.window)
        self.steps.append(f"plug {plug.window}")

    async def unplug(self, device: str, window: int) -> None:
        await self._answer()
        self.asked[window] += 1
        if window in self._stubborn:
            raise PlugError(f"the guest does not release window {window}")
        self.windows.discard(window)
        self.steps.append(f"unplug {window}")

    async def unassigned(self, device: str) -> dict[int, str]:
        await self._answer()
        return dict.fromkeys(self.without_address & self.windows, self.why_no_address)

    async def gone(self) -> None:
        await self._ended.wait()

    async def close(self) -> None:
        self.closed = True
