# SPDX-License-Identifier: Apache-2.0
"""Plugging a device's windows into a running slave VM, and keeping them so.

The device says what is wanted, at any time and as often as it likes; one task makes
the slave VM have it.  It asks the VM what is there, starts to unplug what is not
wanted, plugs what is missing, and begins anew whenever the wish or the VM changes:

    want() ──► wanted ─┐                    ┌─ plug, the metadata's window last
                       ├─► the difference ──┤
    SlaveVm ─► there ──┘                    └─ unplug, until the guest has let go

So a step that fails is not remembered but found again as a difference; the same goes
for a VM that is replaced, and for what a daemon before us has left behind.

A window is *ours* if we plugged it and it has been wanted ever since.  What is there
and not ours shows memory that is no longer served: it goes, and a new one of its
window waits until it is gone.

How a VM is asked is a `SlaveVm`'s affair: QMP (qmp.py) or libvirt (libvirt.py).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..interfaces import Plug
from .vm import PlugError, SlaveVm, VmAway

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds between a step that failed and the next try; they double."""
AWAY_PAUSE = 1.0
"""Seconds between two looks for a VM that is not there."""
UNPLUG_EVERY = 10.0
"""Seconds between two requests to a guest that does not let go."""
CHECK_AFTER = 5.0
"""Seconds that a guest has to give a plugged window an address."""
CLOSE_TIME = 3.0
"""Seconds that guests have to let go when the daemon ends."""


class Hotplug:
    """One device's windows in the slave VM (a `Plugger`).

    Args:
        device: its name.
        where: the slave VM's socket or name.
        vm: how it is asked.
        release: awaited once, when nothing more is asked of it.
    """

    def __init__(
        self,
        device: str,
        where: str,
        vm: SlaveVm,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._device, self._where = device, where
        self._vm, self._release = vm, release
        self._wanted: frozenset[Plug] = frozenset()
        self._ours: dict[int, Plug] = {}
        self._plugging: Plug | None = None
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._connected = False
        self._problems: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._closing = False
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._task = self._start(self._run())

    def want(self, plugs: frozenset[Plug]) -> None:
        """Have these plugged, and no others, as soon as the slave lets us.

        What is not wanted, if only for a moment, is unplugged: so a window that is
        to be plugged anew is left out once.
        """
        if self._closing or plugs == self._wanted:
            return
        self._wanted = plugs
        self._ours = {n: plug for n, plug in self._ours.items() if plug in plugs}
        if self._plugging not in plugs:
            self._plugging = None
        self._changed.set()

    def status(self) -> dict[str, Any]:
        """Return which are plugged, and what stands in the way, as JSON."""
        return {
            "slave": self._where,
            "connected": self._connected,
            "plugged": sorted(self._ours) if self._connected else [],
            "wanted": sorted(plug.window for plug in self._wanted),
            "problem": "; ".join(self._problems.values()),
        }

    async def close(self) -> None:
        """Unplug all, within some seconds."""
        if self._closing:
            return
        self.want(frozenset())
        self._closing = True
        self._settled.clear()
        self._changed.set()  # nothing may have been wanted before
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIME):
                await self._settled.wait()
        tasks = [self._task, *self._leaving.values()]
        tasks += [] if self._watch is None else [self._watch]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._release()

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._changed.clear()
            try:
                complete = await self._reconcile()
            except VmAway as error:
                self._away(error)
                await self._sleep(AWAY_PAUSE)
                continue
            if not complete:
                await self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                await self._rest()

    async def _reconcile(self) -> bool:
        """Do all that can be done now; return whether none of it failed."""
        there = await self._vm.plugged(self._device)
        if not self._connected:
            self._arrived()
        self._ours = {n: plug for n, plug in self._ours.items() if n in there}
        for window in sorted(there - self._ours.keys() - self._leaving.keys()):
            self._leaving[window] = self._start(self._leave(window))
        if not self._leaving and not self._ours:
            self._settled.set()
        return await self._plug_missing()

    async def _plug_missing(self) -> bool:
        """Plug what can be plugged; a new wish cuts it short."""
        wanted = {f"plug {plug.window}" for plug in self._wanted}
        for what in [what for what in self._problems if what.startswith("plug")]:
            if what not in wanted:
                self._solved(what)
        complete = True
        for plug in sorted(self._wanted, key=lambda plug: -plug.window):
            if self._changed.is_set():
                break
            if plug.window not in {*self._ours, *self._leaving}:
                complete = await self._plug(plug) and complete
        return complete

    async def _plug(self, plug: Plug) -> bool:
        self._plugging = plug
        try:
            _check_size(plug)
            await self._vm.plug(self._device, plug)
        except VmAway:
            raise
        except PlugError as error:
            self._problem(f"plug {plug.window}", str(error))
            return False
        else:
            self._plugged(plug)
            return True
        finally:
            self._plugging = None

    def _plugged(self, plug: Plug) -> None:
        """A window is there; it is ours unless the wish has changed meanwhile."""
        self._solved(f"plug {plug.window}")
        if self._plugging is None:
            self._changed.set()
            return
        self._ours[plug.window] = plug
        log.info(
            "%s: window %d is plugged into the slave VM", self._device, plug.window
        )

    async def _leave(self, window: int) -> None:
        """Have the guest let go of a window, however often it must be asked."""
        what = f"unplug {window}"
        try:
            while not await self._let_go(window, what):
                await asyncio.sleep(UNPLUG_EVERY)
            self._solved(what)
        except VmAway:
            self._solved(what)  # whoever comes next is asked anew
        finally:
            del self._leaving[window]
            self._changed.set()

    async def _let_go(self, window: int, what: str) -> bool:
        try:
            await self._vm.unplug(self._device, window)
        except VmAway:
            raise
        except PlugError as error:
            self._problem(what, str(error))
            return False
        log.info("%s: window %d is unplugged", self._device, window)
        return True

    async def _rest(self) -> None:
        """Nothing is left to do: wait for a change, and look whether the guest works.

        A window without an address is told of, and looked at again.
        """
        while self._ours and not self._changed.is_set():
            await self._sleep(CHECK_AFTER)
            if self._changed.is_set() or not await self._lacks_addresses():
                break
        await self._changed.wait()

    async def _lacks_addresses(self) -> bool:
        try:
            lacking = self._ours.keys() & await self._vm.unassigned(self._device)
        except PlugError:
            self._changed.set()  # the next look tells what it is
            return False
        if not lacking:
            self._solved("address")
            return False
        windows = ", ".join(str(window) for window in sorted(lacking))
        self._problem(
            "address",
            f"the slave's guest has not given window {windows} an address: no agent "
            "runs in it yet, it has no driver for PCI hot-plug, or the port's "
            "pref64-reserve is too small (dmesg in the slave says which)",
        )
        return True

    def _arrived(self) -> None:
        """There is a VM: look again when it goes."""
        log.info("%s: the slave VM %s answers", self._device, self._where)
        self._connected = True
        self._problems.clear()
        self._said.clear()
        if self._watch is None or self._watch.done():
            self._watch = self._start(self._wait_gone())

    async def _wait_gone(self) -> None:
        await self._vm.gone()
        self._connected = False
        self._changed.set()

    def _away(self, error: VmAway) -> None:
        self._connected = False
        self._problems.clear()
        self._problem("away", str(error))
        self._settled.set()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not when something has changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _problem(self, what: str, text: str) -> None:
        """Remember what stands in the way; what was said before is not said again."""
        self._problems[what] = text
        level = logging.DEBUG if text == self._said.get(what) else logging.WARNING
        self._said[what] = text
        log.log(level, "%s: %s", self._device, text)

    def _solved(self, what: str) -> None:
        self._problems.pop(what, None)
        self._said.pop(what, None)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task ended; an error of ours in it becomes the loop's."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problems["failed"] = repr(error)
            raise error


def _check_size(plug: Plug) -> None:
    """Refuse what would abort the VM.

    Raises:
        PlugError: it would.
    """
    if plug.size & (plug.size - 1):
        raise PlugError(
            f"window {plug.window} cannot be plugged: its {plug.size} bytes are no "
            "power of two, as a VM's BAR has to be; give the master's memory backend "
            "such a size, or use a process (vhostpci-guest run --socket)"
        )
