# SPDX-License-Identifier: Apache-2.0
"""The configuration file is read again while its devices are served.

`compare` says what has to change, and the daemon does it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from ..config.device import TWO_USES, DeviceConfig, conflicts
from ..config.file import ConfigFile, load
from ..errors import HostError, NotNow
from ..interfaces import Json

log = logging.getLogger(__name__)

AGAIN = 0.2
"""Seconds until what a signal asks for is tried again."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The devices to stop serving, and those to serve, both by their names."""

    removed: tuple[str, ...]
    """These leave, and their memory is discarded."""
    changed: tuple[str, ...]
    """These are started again; their memory stays, for a master that has it."""
    added: tuple[str, ...]

    @property
    def started(self) -> frozenset[str]:
        """The devices that are to be served from now on."""
        return frozenset((*self.changed, *self.added))

    def __str__(self) -> str:
        return (
            f"{len(self.added)} added, {len(self.changed)} changed, "
            f"{len(self.removed)} removed"
        )

    def describe(self, failures: Mapping[str, str]) -> Json:
        """Return what `reload` answers.

        Args:
            failures: why devices cannot be served, by their names.
        """
        failed = {name: why for name, why in failures.items() if name in self.started}
        return {
            "added": list(self.added),
            "changed": list(self.changed),
            "removed": list(self.removed),
            "failed": failed,
        }


def compare(
    served: Mapping[str, DeviceConfig],
    failed: Set[str],
    of_file: Set[str],
    wanted: Sequence[DeviceConfig],
) -> Changes:
    """Compare what is served with what the file says now.

    Devices that were given by `add`, and that the file does not name, stay.

    Args:
        served: the configuration of each device, also of those that failed.
        failed: names of those; they are tried again.
        of_file: names of those that were in the file when it was read last.
        wanted: the devices of the file.

    Raises:
        HostError: a device of the file and one that stays would use the same path.
    """
    names = {device.name for device in wanted}
    stay = [one for one in served.values() if one.name not in names | of_file]
    for device, _, text in conflicts([*stay, *wanted]):
        raise HostError(f"{device.name}: {text}", code=TWO_USES)
    return Changes(
        removed=tuple(name for name in served if name in of_file - names),
        changed=tuple(
            one.name
            for one in wanted
            if one.name in served and (one != served[one.name] or one.name in failed)
        ),
        added=tuple(one.name for one in wanted if one.name not in served),
    )


class Devices(Protocol):
    """The daemon, as a `Reload` uses it."""

    def check_settled(self) -> None:
        """Raise NotNow while devices come or go, and HostError at the daemon's end."""

    def configs(self) -> dict[str, DeviceConfig]:
        """Return the configuration of each device, also of those that failed."""
        ...

    def failures(self) -> dict[str, str]:
        """Return why devices are not served, by their names."""
        ...

    async def change(self, changes: Changes, file: ConfigFile) -> None:
        """Serve what the file says now."""


class Reload:
    """Reads one configuration file again, as often as it is asked to.

    Args:
        devices: what is served.
        file: the file as it was read first.
    """

    def __init__(self, devices: Devices, file: ConfigFile) -> None:
        self.busy = False
        """Whether devices are being changed."""
        self._devices = devices
        self._file = file
        self._begun = asyncio.Event()
        self._asked = False
        """Whether a signal has asked, and the file has not been read since."""
        # asyncio itself keeps only a weak reference to a task.
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Note that the devices are served that the file named when it was read first.

        Until then all who want them changed wait.
        """
        self._begun.set()

    async def wait_begun(self) -> None:
        """Wait for `begin`."""
        await self._begun.wait()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the file again in a task of the loop, as soon as nothing else changes.

        An error is logged.
        """
        self._asked = True
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._while_asked())

    async def _while_asked(self) -> None:
        """Read the file until no signal has come since it was read.

        Who sends a signal gets no answer, so none may be lost: the file may have been
        changed since the reload that is under way has read it.
        """
        await self.wait_begun()
        waits = False
        while self._asked:
            self._asked = False
            try:
                await self.now()
            except NotNow as error:
                if not waits:
                    log.info("SIGHUP waits: %s", error)
                self._asked = waits = True
                await asyncio.sleep(AGAIN)
                continue
            except HostError as error:
                log.error("not reloaded, and nothing has changed: %s", error)
            waits = False

    async def now(self) -> Json:
        """Read the file again, and do what it says; return what has changed.

        Raises:
            HostError: the file has mistakes, or this is not the time; nothing changes.
        """
        await self.wait_begun()
        # In another thread, since the file system and the groups may be slow.
        file = await asyncio.to_thread(load, self._file.path)
        # Only now: devices may have come and gone, and the daemon may be ending.
        self._devices.check_settled()
        changes = self._compare(file)
        self.busy = True
        try:
            await self._devices.change(changes, file)
            self._file = file
        finally:
            self.busy = False
        log.info("reloaded %s: %s", file.path, changes)
        return changes.describe(self._devices.failures())

    def _compare(self, file: ConfigFile) -> Changes:
        if file.run_dir != self._file.run_dir:
            raise HostError(
                f"{file.path}: run-dir {file.run_dir}: the daemon serves "
                f"{self._file.run_dir}: restart it to change that",
                code="H087",
            )
        return compare(
            self._devices.configs(),
            self._devices.failures().keys(),
            {device.name for device in self._file.devices},
            file.devices,
        )
