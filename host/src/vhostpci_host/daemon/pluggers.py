# SPDX-License-Identifier: Apache-2.0
"""What plugs the devices' windows into slave VMs, and how it ends."""

import asyncio
import logging

from ..config.device import DeviceConfig
from ..hotplug.pool import SlavePool
from ..interfaces import UNPLUG, Plugger

log = logging.getLogger(__name__)


class Pluggers:
    """The pluggers of all devices, by the names of these.

    Args:
        loop: runs the tasks that unplug.
        slave_pool: makes the pluggers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slave_pool: SlavePool) -> None:
        self._loop = loop
        self._slave_pool = slave_pool
        self._pluggers: dict[str, Plugger] = {}
        self._unplugging: dict[str, asyncio.Task[None]] = {}

    def new(self, config: DeviceConfig) -> Plugger | None:
        """Return a plugger for a device; None for one without hot-plug."""
        plugger = self._slave_pool.plugger(config)
        if plugger is not None:
            self._pluggers[config.name] = plugger
        return plugger

    async def unplug(self, name: str) -> None:
        """Unplug the device's windows, and wait for that: `UNPLUG` seconds at most."""
        self.unplug_soon(name)
        if name in self._unplugging:
            await asyncio.wait([self._unplugging[name]])

    def unplug_soon(self, name: str) -> None:
        """Begin to unplug the device's windows; a no-op without a plugger."""
        plugger = self._pluggers.pop(name, None)
        if plugger is not None:
            task = self._loop.create_task(_close(name, plugger))
            self._unplugging[name] = task
            task.add_done_callback(lambda _: self._unplugging.pop(name))

    def unplug_all_soon(self) -> None:
        """Begin to unplug the windows of all devices."""
        for name in list(self._pluggers):
            self.unplug_soon(name)

    async def wait(self) -> None:
        """Wait until all that is being unplugged is."""
        if self._unplugging:
            await asyncio.wait(self._unplugging.values())


async def _close(name: str, plugger: Plugger) -> None:
    try:
        await asyncio.wait_for(plugger.close(), UNPLUG)
    except TimeoutError:
        log.warning(
            "%s: the slave VM's guest did not release its windows within %g s",
            name,
            UNPLUG,
        )
    except Exception:
        log.exception("%s: unplugging its windows failed", name)
