# SPDX-License-Identifier: Apache-2.0
"""Keep the windows that are plugged into a slave VM equal to those that are wanted.

The device calls `want` at any time and as often as it likes; one task makes the slave
VM have those windows.  It asks the VM which windows are there, starts to unplug what is
not wanted, plugs what is missing, and starts over when the wish or the VM changes:

    want() ──► wanted ─┐                    ┌─ plug, the metadata's window last
                       ├─► the difference ──┤
    SlaveVm ─► there ──┘                    └─ unplug, until the guest has released it

So a step that fails needs no record: the next look finds it again as a difference.
The same goes for a VM that was replaced, and for windows that an earlier daemon left.

A window is *ours* if this reconciler plugged it and it has been wanted ever since.  Any
other window of the device shows memory that is no longer served: the reconciler unplugs
it, and plugs the new window of that number only when the old one is gone.

A `SlaveVm` knows how to ask the VM: over QMP (qmp_vm.py) or libvirt (libvirt_vm.py).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from vhostpci_shared.errors import said
from vhostpci_shared.limits import exhausted, no_descriptors

from ..interfaces import Plug, nothing
from .vm import PlugError, SlaveVm, VmAway

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds between a step that failed and the next try: doubled after each failure."""
AWAY_PAUSE = 1.0
"""Seconds between two attempts to reach a VM that is not there."""
UNPLUG_EVERY = 10.0
"""Seconds between two requests to a guest that does not release a window."""
CHECK_AFTER = 5.0
"""Seconds that a guest has to give a plugged window an address."""
CLOSE_TIME = 3.0
"""Seconds that a guest has to release its windows when the daemon ends."""

_WHY_NO_ADDRESS = (
    "no agent runs in it yet, it has no driver for PCI hot-plug, or the port's "
    "pref64-reserve is too small (dmesg in the slave says which)"
)


class Reconciler:
    """Plugs and unplugs one device's windows in the slave VM (a `Plugger`).

    Args:
        device: its name.
        where: the slave VM's socket or name.
        vm: how it is asked.
        release: awaited once, at the end of `close`, to give the VM back to the pool.
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
        self._on_plugged = nothing
        self._task = self._start(self._run())

    @property
    def plugged(self) -> frozenset[int]:
        """The windows that are plugged, as it was seen last."""
        return frozenset(self._ours)

    def adopt(self, plugs: frozenset[Plug], changed: Callable[[], None]) -> None:
        """Take over what a daemon before us has plugged, before the first `want`.

        Its windows are ours: they show what we go on to serve.  Whether they are still
        there, the first look at the VM says.
        """
        self._ours = {plug.window: plug for plug in plugs}
        self._on_plugged = changed

    def want(self, plugs: frozenset[Plug]) -> None:
        """Have these windows plugged, and no others, as soon as the slave VM allows.

        A window that is left out even once is unplugged: that is how the device has
        a window plugged again with other memory.
        """
        if self._closing or plugs == self._wanted:
            return
        self._wanted = plugs
        # From here on these windows are not ours, even if the next wish has them again
        # before the task runs: the guest may have mapped memory that is gone.
        self._ours = {n: plug for n, plug in self._ours.items() if plug in plugs}
        self._on_plugged()
        # The same for a window whose plugging is under way: `_plugged` sees None.
        if self._plugging not in plugs:
            self._plugging = None
        self._changed.set()

    def status(self) -> dict[str, Any]:
        """Return which windows are plugged, and the present problem, as JSON."""
        return {
            "slave": self._where,
            "connected": self._connected,
            "plugged": sorted(self._ours) if self._connected else [],
            "wanted": sorted(plug.window for plug in self._wanted),
            "problem": "; ".join(self._problems.values()),
        }

    async def close(self) -> None:
        """Unplug all windows, for CLOSE_TIME seconds at most, and stop."""
        if self._closing:
            return
        self.want(frozenset())
        self._closing = True
        # Clear, then wake the task: it may have settled long ago, and `want` wakes it
        # only if the wish has changed.  Windows of an earlier daemon must go too.
        self._settled.clear()
        self._changed.set()
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
            # Before the look at the VM: a change during the look must cause another.
            self._changed.clear()
            try:
                complete = await self._reconcile()
            except VmAway as error:
                self._on_away(error)
                await self._sleep(AWAY_PAUSE)
                continue
            except PlugError as error:
                self._problem("look", said(error))
                complete = False
            else:
                self._solved("look")
            if not complete:
                await self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                await self._wait_change()

    async def _reconcile(self) -> bool:
        """Compare the VM with the wish, once; return whether every step succeeded.

        Raises:
            PlugError: the VM cannot be looked at.
        """
        with _asking(self._where):
            there = await self._vm.plugged(self._device)
        if not self._connected:
            self._on_connected()
        self._ours = {n: plug for n, plug in self._ours.items() if n in there}
        self._on_plugged()
        for window in sorted(there - self._ours.keys() - self._leaving.keys()):
            self._leaving[window] = self._start(self._unplug(window))
        # Unplugging runs in separate tasks: one window that its guest holds must not
        # keep the others from being plugged.
        if not self._leaving and not self._ours:
            self._settled.set()
        return await self._plug_missing()

    async def _plug_missing(self) -> bool:
        """Plug the windows that are missing, until the wish changes."""
        wanted = {f"plug {plug.window}" for plug in self._wanted}
        for what in [what for what in self._problems if what.startswith("plug")]:
            if what not in wanted:
                self._solved(what)
        complete = True
        # Window 0 last: its metadata tells the agent of the others, which should be
        # there by then.
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
            with _asking(self._where):
                await self._vm.plug(self._device, plug)
        except VmAway:
            raise
        except PlugError as error:
            self._problem(f"plug {plug.window}", said(error))
            return False
        else:
            self._plugged(plug)
            return True
        finally:
            self._plugging = None

    def _plugged(self, plug: Plug) -> None:
        """Note a window that was plugged; it is ours if it is still wanted."""
        self._solved(f"plug {plug.window}")
        # `want` left it out while the VM was plugging it: unplug it again.
        if self._plugging is None:
            self._changed.set()
            return
        self._ours[plug.window] = plug
        self._on_plugged()
        log.info(
            "%s: window %d is plugged into the slave VM", self._device, plug.window
        )

    async def _unplug(self, window: int) -> None:
        """Unplug a window; ask the guest again until it releases it."""
        what = f"unplug {window}"
        # There is no last attempt: a guest may boot for minutes, or never get a driver.
        # Until it has released the window, no new one of that number is plugged.
        try:
            while not await self._try_unplug(window, what):
                await asyncio.sleep(UNPLUG_EVERY)
            self._solved(what)
        except VmAway:
            # The window ended with the VM; `plugged` is asked again of the next one.
            self._solved(what)
        finally:
            del self._leaving[window]
            self._changed.set()

    async def _try_unplug(self, window: int, what: str) -> bool:
        try:
            with _asking(self._where):
                await self._vm.unplug(self._device, window)
        except VmAway:
            raise
        except PlugError as error:
            self._problem(what, said(error))
            return False
        log.info("%s: window %d is unplugged", self._device, window)
        return True

    async def _wait_change(self) -> None:
        """Wait for a change; report windows that the guest gives no address."""
        # QEMU has no event that says that the guest has set up a BAR: ask for it.
        while self._ours and not self._changed.is_set():
            await self._sleep(CHECK_AFTER)
            if self._changed.is_set() or not await self._lacks_addresses():
                break
        await self._changed.wait()

    async def _lacks_addresses(self) -> bool:
        try:
            with _asking(self._where):
                found = await self._vm.unassigned(self._device)
        except PlugError:
            # `_reconcile` asks the VM next, and reports what is wrong with it.
            self._changed.set()
            return False
        lacking = {n: why for n, why in found.items() if n in self._ours}
        if not lacking:
            self._solved("address")
            return False
        windows = ", ".join(str(window) for window in sorted(lacking))
        # Windows that lack an address for the same reason have the same text.
        known = "; ".join(sorted({why for why in lacking.values() if why}))
        self._problem(
            "address",
            f"the slave's guest has not given window {windows} an address: "
            f"{known or _WHY_NO_ADDRESS}",
        )
        return True

    def _on_connected(self) -> None:
        """Forget the problems of the VM before, and watch for the end of this one."""
        log.info("%s: the slave VM %s answers", self._device, self._where)
        self._connected = True
        self._problems.clear()
        self._said.clear()
        if self._watch is None or self._watch.done():
            self._watch = self._start(self._wait_gone())

    async def _wait_gone(self) -> None:
        await self._vm.gone()
        # The next look must call `_on_connected`, even if another VM is there at once.
        self._connected = False
        self._changed.set()

    def _on_away(self, error: VmAway) -> None:
        self._connected = False
        self._problems.clear()
        self._problem("away", said(error))
        # A VM that is away has no windows, so `close` need not wait for any.
        self._settled.set()

    async def _sleep(self, seconds: float) -> None:
        """Wait, but end at once when something changes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _problem(self, what: str, text: str) -> None:
        """Keep a problem for `status`; warn of it unless the last warning said so."""
        # The same text again is for --verbose alone: a VM that is away for a night
        # would fill the log.
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
        """Report a bug that ended a task.

        An exception that a done callback raises goes to the loop's exception handler.
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problems["failed"] = repr(error)
            raise error


@contextlib.contextmanager
def _asking(where: str) -> Iterator[None]:
    """Turn an error of this machine's into a PlugError: it must not end a task.

    Raises:
        PlugError: `where` cannot be asked now.
    """
    try:
        yield
    except OSError as error:
        if exhausted(error):
            why = no_descriptors(error)
            raise PlugError(f"cannot ask {where}: {why}", code=why.code) from error
        raise PlugError(
            f"cannot ask {where}: {error.strerror or error}: trying again", code="H156"
        ) from error


def _check_size(plug: Plug) -> None:
    """Check the size of a window.

    Raises:
        PlugError: it is not a power of two.
    """
    # QEMU aborts, with its guest, on a BAR whose size is no power of two
    # (an assertion in pci_register_bar).
    if plug.size & (plug.size - 1):
        raise PlugError(
            f"window {plug.window} cannot be plugged: its {plug.size} bytes are no "
            "power of two, as a VM's BAR has to be; give the master's memory backend "
            "such a size, or use a process (vhostpci-guest run --socket)",
            code="H110",
        )
