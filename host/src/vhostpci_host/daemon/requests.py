# SPDX-License-Identifier: Apache-2.0
"""What the daemon does for each request at its control sockets (control.py).

A device's socket takes those about one device, the daemon's socket also those that add,
remove and reload.  The daemon's socket is there before the devices are.  While a daemon
goes on with the devices of an earlier one, a request about devices waits until they are
there; one that changes devices waits for those of the file, too.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..config import options
from ..config.device import TWO_USES, DeviceConfig, check_name, conflicts
from ..errors import HostError
from ..interfaces import Json
from .control import Commands, Followed, Request, given_options
from .entry import Entry
from .filtered import Filtered
from .keeper_port import KeeperPort, pid
from .monitor import Monitor


class Changeable(Protocol):
    """The daemon, as requests change it."""

    @property
    def shared(self) -> Mapping[str, str] | None:
        """Options that an added device has unless it says otherwise."""

    async def add(
        self, config: DeviceConfig, *, added: Mapping[str, str] | None = None
    ) -> None:
        """Serve a device."""

    async def remove(self, name: str) -> None:
        """Serve a device no more."""

    async def reload(self) -> Json:
        """Read the file again."""

    async def wait_restored(self) -> None:
        """Wait until all devices go on that an earlier daemon has left."""

    async def wait_begun(self) -> None:
        """Wait until the devices that the file named first are served."""

    def check_goes_on(self) -> None:
        """Refuse to change devices that are being closed, or changed otherwise."""

    def warn_of_shortage(self) -> None:
        """Warn if the memory of all devices does not fit."""


class Requests:
    """Answers requests.

    Args:
        daemon: that they change.
        entries: its devices.
        monitor: has the subscribers.
        keeper: what a successor gets.
        filtered: what this process may do.
    """

    def __init__(
        self,
        daemon: Changeable,
        entries: Mapping[str, Entry],
        monitor: Monitor,
        keeper: KeeperPort,
        filtered: Filtered,
    ) -> None:
        self._daemon = daemon
        self._entries = entries
        self._monitor = monitor
        self._keeper = keeper
        self._filtered = filtered

    def of_device(self) -> Commands:
        """Return the commands of a device's control socket."""
        return {
            "status": self._status,
            "conversation": self._conversation,
            "monitor": self._follow,
            "clear": self._clear,
            "pid": pid,
            "restart": self._keeper.restart,
        }

    def of_daemon(self, run_dir: Path) -> Commands:
        """Return the commands of the daemon's control socket.

        Args:
            run_dir: where it is; added devices have their sockets there, too.
        """
        self._run_dir = run_dir
        about: Commands = {
            "status": self._status,
            "list": self._list,
            "clear": self._clear,
            "monitor": self._follow,
        }
        changing: Commands = {
            "add": self.add,
            "remove": self.remove,
            "reload": self.reload,
        }
        return {
            **_after(self._daemon.wait_restored, about),
            "pid": pid,
            "restart": self._keeper.restart,
            **_after(self._daemon.wait_begun, changing),
        }

    async def _status(self, request: Request) -> Json:
        """Describe the device that the request names, or the only one."""
        if request.get("name") is None and len(self._entries) == 1:
            found = next(iter(self._entries.values())).describe()
        else:
            found = self._entry(request).describe()
        seccomp = self._filtered.describe()
        return {**found, "keeper": self._keeper.describe(), "seccomp": seccomp}

    async def _conversation(self, request: Request) -> Json:
        return self._entry(request).conversation(request.get("since", 0))

    async def _clear(self, request: Request) -> None:
        self._entry(request).clear()

    async def _follow(self, request: Request) -> Followed:
        name = self._entry(request).config.name if request.get("name") else None
        return Followed({"events": 1}, self._monitor.subscribe(name))

    async def _list(self, request: Request) -> list[Json]:
        return [entry.row() for entry in self._entries.values()]

    async def add(self, request: Request) -> None:
        """Serve a device that the request describes.

        Raises:
            HostError: it cannot be served, or not now.
        """
        self._daemon.check_goes_on()
        name = request.get("name")
        check_name(name if isinstance(name, str) else "")
        if name in self._entries:
            raise HostError(
                f"device {name!r} is there already: remove it first", code="H073"
            )
        given = given_options(request.get("options", {}))
        given = {**(self._daemon.shared or {}), **given}
        given[options.RUN_DIR.name] = str(self._run_dir)
        device = options.device(str(name), given)
        there = [entry.config for entry in self._entries.values()]
        for *_, text in conflicts([*there, device]):
            raise HostError(f"{name}: {text}", code=TWO_USES)
        await self._daemon.add(device, added=given)
        self._daemon.warn_of_shortage()

    async def remove(self, request: Request) -> None:
        """Serve a device no more.

        Raises:
            HostError: there is no such device, or it cannot be removed now.
        """
        self._daemon.check_goes_on()
        entry = self._entry(request)
        if entry.leaving:
            raise HostError(
                f"device {entry.config.name!r} is being removed already", code="H074"
            )
        if entry.arriving:
            raise HostError(
                f"device {entry.config.name!r} is still being added: wait", code="H075"
            )
        await self._daemon.remove(entry.config.name)

    async def reload(self, request: Request) -> Json:
        """Read the file again, and return what has changed."""
        return await self._daemon.reload()

    def _entry(self, request: Request) -> Entry:
        name = request.get("name")
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None:
            there = ", ".join(self._entries) or "none"
            raise HostError(f"no device {name!r}; there are: {there}", code="H078")
        return entry


def _after(wait: Callable[[], Awaitable[None]], commands: Commands) -> Commands:
    """Return commands that wait first."""

    def made(command: Callable[[Request], Awaitable[Any]]) -> Any:
        async def run(request: Request) -> Any:
            await wait()
            return await command(request)

        return run

    return {name: made(command) for name, command in commands.items()}
