# SPDX-License-Identifier: Apache-2.0
"""The devices of one process by name, and the event loop that all of them run in.

Each device has a `Server`.  A device that fails is closed and stays listed as failed
until it is removed; the other devices go on.  All waiting is done by asyncio's event
loop: everything else is called by it, and returns.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

from vhostpci_shared.errors import Said, code_of, said
from vhostpci_shared.limits import exhausted, no_descriptors, shortage
from vhostpci_shared.wire import ProtocolError

from ..config import options
from ..config.device import DeviceConfig, Mode, daemon_control
from ..config.file import ConfigFile
from ..device.peer_log import PeerLog
from ..errors import HostError, InUse, NotNow
from ..hotplug.pool import SlavePool
from ..interfaces import Json
from ..ivshmem.linger import Linger
from ..ivshmem.relays import thread_relays
from ..keeper import signals
from ..keeper.slots import StateError
from ..keeper.store import DescriptorStore
from ..memory.arena_file import remove_left_behind
from ..memory.attach import WindowIds
from ..memory.directory import make_directory
from ..memory.room import shortages
from .common import Common
from .control import Control
from .directories import Directories
from .entry import Entry
from .filtered import UNFILTERED, Filtered
from .keeper_port import KeeperPort
from .left_behind import LeftBehind
from .listeners import PathListener
from .monitor import Monitor
from .pluggers import Pluggers
from .reload import Changes, Reload
from .requests import Requests
from .server import SLOW_TICKS, Server

log = logging.getLogger(__name__)

ROOM_TICKS = 240
"""Ticks from one look at the room for all arenas to the next; others take room, too."""
TICK = 0.250
"""Seconds between two ticks of each device."""


class Daemon:
    """The devices of this process, until a signal ends it.

    Args:
        shared: options that an added device has unless it says otherwise; None for a
            daemon with one device, which lives and fails with it.
        store: keeps what a successor needs; None without a keeper.
        filtered: what this process may do.
    """

    def __init__(
        self,
        shared: Mapping[str, str] | None = None,
        store: DescriptorStore | None = None,
        filtered: Filtered = UNFILTERED,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._keeper = KeeperPort(store)
        self._monitor = Monitor(lambda: self._entries)
        self._common = Common(
            self.loop,
            WindowIds(),
            Linger(self.loop),
            Directories(self.loop.time),
            self._serve_device_control,
            thread_relays(),
            store,
            self._keeper.given,
            self._monitor.look,
        )
        self._left = self._keeper.left()
        self._shared = shared
        self._entries: dict[str, Entry] = {}
        self._reload: Reload | None = None
        self._restored = asyncio.Event()
        self._pluggers = Pluggers(self.loop, SlavePool(filtered.programs))
        self._control = Control()
        self.requests = Requests(
            self, self._entries, self._monitor, self._keeper, filtered
        )
        self._listener: PathListener | None = None
        self._log = PeerLog("daemon", self.loop)
        self._ticks = 0
        self._short_systems: Set[int] = frozenset()
        self._stack = contextlib.ExitStack()
        self._ended = self.loop.create_future()
        self._timer = self.loop.call_later(TICK, self._tick)
        self.loop.set_exception_handler(self._loop_failed)
        self._handle_signals()

    def _handle_signals(self) -> None:
        # None of these may end the process by itself: it would leave its sockets, and
        # plugged devices in slave VMs.
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._on_end)
        self.loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self.loop.add_signal_handler(signal.SIGUSR2, self._keeper.on_signal)
        self.loop.add_signal_handler(
            signal.SIGUSR1, log.info, "SIGUSR1 is ignored: it has no meaning here"
        )
        signals.unblock()

    # Its devices.

    async def restore(self, configs: Iterable[DeviceConfig]) -> None:
        """Go on with what a daemon before us has served of these devices.

        Those that it has added go on as well.  What it has left of any other is closed.
        Who asks about devices waits until those that go on are there.
        """
        for config in configs:
            self._restore(config)
            await asyncio.sleep(0)  # the first ones beat their heart meanwhile
        added = self._restore_added() if self._shared is not None else {}
        while self._left:
            name, left = self._left.popitem()
            log.info("%s: is not served any more: it is closed", name)
            self._unplug_left(left)
            left.file.close()
        # Those who ask cannot wait for a slave VM's guest.
        self._restored.set()
        # Of those that could not go on: their next pluggers must find nothing.
        await self._pluggers.wait()
        self._keeper.finish_start()
        for config, texts in added.items():
            # No file names it, so it begins again here if it could not go on.
            if config.name not in self._entries:
                await self.add_or_list(config, texts)

    def _restore(
        self, config: DeviceConfig, added: Mapping[str, str] | None = None
    ) -> None:
        """Go on with one device, or say why that cannot be."""
        left = self._left.pop(config.name, None)
        if left is None:
            return
        entry = self._entries[config.name] = Entry(config)
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(left.file.close)
                # Its windows may be plugged into a VM that it has no more.
                undo.callback(self._unplug_left, left)
                left.check(config)
                undo.pop_all()
            server = self._new_server(config, added=added, left=left)
            if entry.failure:
                raise HostError(entry.failure, code=code_of(entry.failure))
            entry.server = server
            server.serve_control()
        except (StateError, HostError, ProtocolError, OSError) as error:
            del self._entries[config.name]
            self._pluggers.unplug_soon(config.name)
            log.warning(
                "%s: what an earlier daemon has left cannot be used: %s; the device "
                "begins without it, and its master connects again",
                config.name,
                error,
            )
            return
        self._keeper.taken(left, self._left.values())
        entry.arriving = False
        log.info("%s: goes on where an earlier daemon has ended", config.name)

    def _unplug_left(self, left: LeftBehind) -> None:
        """Unplug the windows of a device that does not go on as it was."""
        config = left.plugged_as()
        if config is not None and self._pluggers.new(config) is not None:
            self._pluggers.unplug_soon(config.name)

    def _restore_added(self) -> dict[DeviceConfig, Mapping[str, str]]:
        """Go on with the devices that were added; return them with their options."""
        found: dict[DeviceConfig, Mapping[str, str]] = {}
        for name, left in list(self._left.items()):
            if left.added is None:
                continue
            try:
                config = options.device(name, left.added)
            except HostError as error:
                log.warning("%s: was added, and is not served now: %s", name, error)
                continue
            found[config] = left.added
            self._restore(config, left.added)
        return found

    def ready(self) -> None:
        """Tell the keeper, or the service manager, that all devices are served."""
        self._keeper.ready(len(self._entries))

    async def add(
        self,
        config: DeviceConfig,
        inherited: socket.socket | None = None,
        added: Mapping[str, str] | None = None,
    ) -> None:
        """Serve one more device.

        Args:
            config: the device's.
            inherited: its vhost-user socket, if we were given one.
            added: its options, if it is in no file.

        Raises:
            HostError: it cannot be served.
        """
        assert config.name not in self._entries, "two devices of one name"
        entry = self._entries[config.name] = Entry(config)
        try:
            await self._serve(entry, inherited, added)
        except BaseException as error:
            await self._pluggers.unplug(config.name)
            self._close(entry)
            # It is not there if the daemon was closed meanwhile.
            self._entries.pop(config.name, None)
            if short := shortage(error):
                why = no_descriptors(short)
                raise HostError(why, code=why.code) from error
            raise
        entry.arriving = False
        if config.connect is None:
            text = "%s: waiting for the master at %s and the slave at %s"
        else:
            text = "%s: connecting to the master at %s, waiting for the slave at %s"
        where = config.vhost_user if inherited is None else "the inherited socket"
        log.info(text, config.name, where, config.ivshmem)

    async def _serve(
        self,
        entry: Entry,
        inherited: socket.socket | None,
        added: Mapping[str, str] | None,
    ) -> None:
        """Open everything that the device of a new entry needs.

        Raises:
            HostError: it cannot be served, or has failed or was closed meanwhile.
        """
        # An arena of this name that a device has just left can be replaced only when
        # the keeper has closed it, too.
        await self._keeper.settle()
        if self._entries.get(entry.config.name) is entry:
            entry.server = self._new_server(entry.config, inherited, added=added)
        if entry.server is not None and entry.config.prealloc:
            await entry.server.reserve_memory(self._ended.done)
        if entry.server is None:
            if entry.failure:
                raise HostError(entry.failure, code=code_of(entry.failure))
            raise HostError(
                "the daemon is ending: try again when the next one runs", code="H069"
            )
        entry.server.serve_control()

    def _new_server(
        self,
        config: DeviceConfig,
        inherited: socket.socket | None = None,
        *,
        added: Mapping[str, str] | None = None,
        left: LeftBehind | None = None,
    ) -> Server:
        return Server(
            self._common,
            config,
            failed=partial(self._device_failed, config.name),
            ended=self.stop,
            plugger=self._pluggers.new(config),
            inherited=inherited,
            added=added,
            left=left,
        )

    def _tick(self) -> None:
        """Tick all devices, from one timer: two hundred timers cost more than they do.

        A device that fails has no server any more, hence the copy.
        """
        self._timer = self.loop.call_later(TICK, self._tick)
        self._ticks += 1
        self._keeper.tick()
        if self._listener is not None and self._ticks % SLOW_TICKS == 0:
            self._listener.check()
            self._keeper.keep_control(self._listener)
        if self._ticks % ROOM_TICKS == 0:
            self.warn_of_shortage(only_new=True)
        for entry in list(self._entries.values()):
            if entry.server is not None:
                entry.server.tick()
        self._monitor.look()

    async def add_or_list(
        self, config: DeviceConfig, added: Mapping[str, str] | None = None
    ) -> None:
        """Serve one more device, or list it as failed if that is not possible."""
        try:
            await self.add(config, added=added)
        except HostError as error:
            log.error("%s: cannot be served: %s", config.name, error)
            failed = Entry(config, failure=said(error), arriving=False)
            self._entries[config.name] = failed

    def warn_of_shortage(self, *, only_new: bool = False) -> None:
        """Warn if the memory of all devices together does not fit where it lies.

        Args:
            only_new: only of file systems of which it was not true the last time.
        """
        servers = (entry.server for entry in self._entries.values())
        stores = (server.device.store for server in servers if server is not None)
        promises = (store.promise() for store in stores)
        found = shortages(one for one in promises if one is not None)
        for system, text in found.items():
            if not (only_new and system in self._short_systems):
                log.warning("%s", text)
        self._short_systems = found.keys()

    async def remove(self, name: str) -> None:
        """Unplug and close a device, and discard its memory; the others go on."""
        entry = self._entries[name]
        entry.leaving = True
        await self._pluggers.unplug(name)
        if entry.server is not None:
            entry.server.device.store.discard()
        elif entry.config.mode is Mode.ARENA:
            self._discard_memory_of_failed(entry.config)
        self._close(entry)
        # It is not there if the daemon was closed meanwhile.
        self._entries.pop(name, None)
        log.info("%s: removed", name)

    def _discard_memory_of_failed(self, config: DeviceConfig) -> None:
        """Remove the arena that a device left when it failed, if it left one."""
        try:
            remove_left_behind(config.arena, config.access)
        except HostError as error:
            log.warning("%s: %s", config.name, error)

    def _device_failed(self, name: str, error: Exception) -> None:
        entry = self._entries[name]
        # A HostError is for the user; of any other the type may be all that it says.
        kind = "" if isinstance(error, HostError) else f"{type(error).__name__}: "
        entry.server, entry.failure = None, Said(f"{kind}{error}", code_of(error))
        self._pluggers.unplug_soon(name)
        # One that is only being added is reported by `add`.
        alone = self._shared is None and not entry.arriving
        if alone and not self._ended.done():
            text = f"{name}: failed: {entry.failure}"
            self._ended.set_exception(
                HostError(text, code=code_of(entry.failure) or "H070")
            )

    def _close(self, entry: Entry) -> None:
        """Close a device; log an error, so that the others are closed, too."""
        server, entry.server = entry.server, None
        try:
            if server is not None:
                server.close()
        except Exception:
            log.exception("%s: failed while it was closed", entry.config.name)

    # Its configuration file.

    def keep_file(self, file: ConfigFile) -> None:
        """Keep what the file says for a successor that finds mistakes in it."""
        self._keeper.keep_file(file.text)

    def begin_file(self, file: ConfigFile) -> None:
        """Keep what the file says, and have it read again when that is asked for.

        Who asks before `serve_file` has served its devices has to wait.
        """
        self.keep_file(file)
        self._reload = Reload(self, file)

    async def serve_file(self, file: ConfigFile) -> None:
        """Serve the devices of a file; those that cannot be served are failed ones."""
        assert self._reload is not None, "serve_file() without begin_file()"
        for device in file.devices:
            if device.name not in self._entries:
                await self.add_or_list(device)
        self._reload.begin()

    def _on_hangup(self) -> None:
        """Read the file again, because a signal asks for it."""
        if self._reload is None:
            log.info("SIGHUP is ignored: there is no configuration file to read again")
        else:
            self._reload.start(self.loop)

    def check_settled(self) -> None:
        """Refuse to read the file while devices come or go.

        Raises:
            NotNow: a device is being added or removed, or the file is read again.
            HostError: the daemon is ending.
        """
        self.check_goes_on()
        for name, entry in self._entries.items():
            if entry.arriving or entry.leaving:
                going = "added" if entry.arriving else "removed"
                raise NotNow(
                    f"device {name!r} is being {going}: try again later", code="H071"
                )

    def configs(self) -> dict[str, DeviceConfig]:
        """Return the configuration of each device, also of those that failed."""
        return {name: entry.config for name, entry in self._entries.items()}

    def failures(self) -> dict[str, str]:
        """Return why devices are not served, by their names."""
        found = self._entries.items()
        return {name: entry.failure for name, entry in found if entry.failure}

    async def change(self, changes: Changes, file: ConfigFile) -> None:
        """Serve what the file says now."""
        self.keep_file(file)
        self._shared = file.shared
        for name in changes.changed:
            self._entries[name].leaving = True
        # At once: each slave VM's guest may take seconds to release its windows.
        await asyncio.gather(
            *(self.remove(name) for name in changes.removed),
            *(self._pluggers.unplug(name) for name in changes.changed),
        )
        for name in changes.changed:
            # Its memory stays: a master that has it goes on with it.
            if entry := self._entries.pop(name, None):
                self._close(entry)
        for device in file.devices:
            if device.name in changes.started and not self._ended.done():
                await self.add_or_list(device)
        self.warn_of_shortage()

    # Its end.

    async def ended(self) -> None:
        """Wait until a signal or an error of ours ends the daemon."""
        await self._ended

    def _on_end(self) -> None:
        """End because of a signal."""
        # systemd stops a service to start it again, and gives its successor what it
        # keeps; at a stop for good it closes that by itself.
        if self._keeper.is_systemd:
            self._keeper.make_room(0)
        self.stop()

    def stop(self) -> None:
        """End the daemon."""
        if not self._ended.done():
            self._ended.set_result(None)

    def end_is_explained(self) -> None:
        """Note that the daemon ends by an error that the user is told."""
        self._keeper.explained()

    async def close(self) -> None:
        """Unplug what is plugged, and close all devices."""
        self._monitor.end()
        self._keeper.end()
        self._stack.close()
        self._timer.cancel()
        self._pluggers.unplug_all_soon()
        await asyncio.gather(self._pluggers.wait(), self._control.end_streams())
        while self._entries:
            self._close(self._entries.popitem()[1])
        self._common.linger.close()
        if self._common.relays is not None:
            self._common.relays.close()
        self._log.close()
        self._keeper.close()

    def _loop_failed(
        self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
    ) -> None:
        """Act on an error outside of any device: end, if there is but one device.

        A daemon with many devices logs it and goes on, and any daemon does when no
        descriptors are left.
        """
        error = context.get("exception")
        if isinstance(error, OSError) and exhausted(error):
            self._log.warn_once(no_descriptors(error))
        elif error is None or self._shared is not None or self._ended.done():
            loop.default_exception_handler(context)
        else:
            self._ended.set_exception(error)

    # Its control sockets.

    def _serve_device_control(self, connection: socket.socket) -> None:
        """Answer the lines of one connection to a device's control socket."""
        self._control.take(self.requests.of_device(), connection)

    def serve_control(self, run_dir: Path) -> None:
        """Serve the daemon's control socket: `add`, `remove`, `reload` and so on.

        Raises:
            HostError: another daemon serves this directory.
        """
        make_directory(run_dir)
        path = daemon_control(run_dir)
        take = partial(self._control.take, self.requests.of_daemon(run_dir))
        try:
            listener = self._keeper.listen(path, self.loop, take, self._log.warn_once)
        except InUse:
            raise HostError(
                f"another daemon serves {run_dir} (it answers at {path}): give it "
                "devices with `vhostpci-host add`, or choose another run-dir",
                code="H072",
            ) from None
        self._stack.callback(listener.close)
        self._listener = listener

    async def wait_restored(self) -> None:
        """Wait until all devices go on that an earlier daemon has left."""
        await self._restored.wait()

    async def wait_begun(self) -> None:
        """Wait until the devices that the file named first are served."""
        await self.wait_restored()
        if self._reload is not None:
            await self._reload.wait_begun()

    @property
    def shared(self) -> Mapping[str, str] | None:
        """Options that an added device has unless it says otherwise."""
        return self._shared

    async def reload(self) -> Json:
        """Read the file again, and return what has changed."""
        assert self._reload is not None, "a control socket without a file"
        return await self._reload.now()

    def check_goes_on(self) -> None:
        """Refuse to change devices that are being closed, or changed otherwise.

        Raises:
            NotNow: the daemon reads its file again.
            HostError: it is ending.
        """
        if self._ended.done():
            raise HostError(
                "the daemon is ending: try again when the next one runs", code="H076"
            )
        if self._reload is not None and self._reload.busy:
            raise NotNow(
                "the daemon is reloading its file: try again later", code="H077"
            )
