# SPDX-License-Identifier: Apache-2.0
"""One device and its sockets: what arrives at them becomes calls of its `Device`."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from vhostpci_shared.errors import Said, code_of
from vhostpci_shared.limits import exhausted, no_descriptors

from .. import sockets
from ..config.device import DeviceConfig, Mode
from ..device.device import Device
from ..device.kept import DeviceState
from ..device.peer_log import PeerLog
from ..device.status import state
from ..device.succession import (
    capture,
    restore_master,
    restore_slave,
    settle_doubt,
)
from ..device.windows import ShownWindows
from ..errors import HostError
from ..interfaces import Json, Plugger
from ..ivshmem.connection import SlaveConnection
from ..ivshmem.relays import LoopRelays
from ..keeper.shelf import Shelf
from ..keeper.store import Keep
from ..memory.arena import Arena
from ..memory.attach import AttachedMemory
from ..memory.directory import make_directory
from ..memory.regions import Store
from ..vhost_user.connection import MasterConnection
from ..vhost_user.conversation import Conversation
from .admission import Admission
from .carrier import MasterCarrier
from .common import Common
from .directories import NameWatch
from .entrance import Entrance, entrance_of
from .isolated_loop import IsolatedLoop
from .left_behind import LeftBehind, remove_left_windows
from .listeners import Listener, PathListener, Place
from .listening import Listening
from .seats import slave_hangs
from .state_clock import StateClock

log = logging.getLogger(__name__)

SLOW_TICKS = 4
"""Ticks from one slow tick to the next."""
SUSPICION = 0.5
"""Seconds for which a process that was no slave has time to show that it is none."""
PUZZLING = 3
"""Visits of a front-end that rejects us, after which the log says what to look at."""


class Server:
    """One device and its sockets.

    Args:
        common: what it shares with the other devices.
        config: the device's.
        failed: called with the exception when the device fails; it is closed by then.
        ended: called when the only connection that there can be has ended.
        plugger: hot-plugs the windows into a slave VM; None without hot-plug.
        inherited: a vhost-user socket that we were given, instead of one we make.
        added: the options of a device that no file has, for a successor.
        left: what a daemon before us has left of the device.

    Raises:
        HostError: a socket or the arena cannot be made.
        StateError: `left` does not fit.
    """

    def __init__(
        self,
        common: Common,
        config: DeviceConfig,
        *,
        failed: Callable[[Exception], None],
        ended: Callable[[], None],
        plugger: Plugger | None = None,
        inherited: socket.socket | None = None,
        added: Mapping[str, str] | None = None,
        left: LeftBehind | None = None,
    ) -> None:
        self.loop = IsolatedLoop(common.loop, self._fail, self._exhausted)
        self._common = common
        self._config = config
        self._failed = failed
        self._ended = ended
        self._plugger = plugger
        self._master: MasterConnection | None = None
        self._slave: SlaveConnection | None = None
        self._log = PeerLog(config.name, self.loop)
        self.conversation = Conversation(config.name)
        self._masters = Admission(self.loop, self._new_master)
        # A slave may come back as often as it likes.  Only what was no slave waits, and
        # shows meanwhile whether it is one now.
        self._slaves = Admission(self.loop, self._new_slave, least=SUSPICION)
        self._alone = False
        self._ticks = 0
        self.state_clock = StateClock(fresh=left is None)
        self._listening = Listening(
            self.loop, common.given, common.keeper, self._log.warn_once
        )
        self._names = self._watch_names()
        self._added = added
        self._shelf = self._new_shelf(left)
        self._stack = self._open_or_undo(inherited, left)
        self._begin(left)

    def _open_or_undo(
        self, inherited: socket.socket | None, left: LeftBehind | None
    ) -> contextlib.ExitStack:
        """Open everything, and return what closes it; if one fails, close the others.

        Raises:
            HostError: a socket or the arena cannot be made.
            StateError: `left` does not fit.
        """
        with contextlib.ExitStack() as stack:
            if self._shelf is not None:
                stack.callback(self._shelf.close)
            if left is not None:
                self._listening.take_over(left.listeners())
                stack.callback(self._listening.close_left)
            self._open(self._config, inherited, stack, left)
            if left is not None:
                self._finish_restoring(left)
            return stack.pop_all()

    def _begin(self, left: LeftBehind | None) -> None:
        """Keep the device from now on, and go on with what was left."""
        if self._shelf is not None:
            self._shelf.active = True
            self._shelf.save()
        if left is not None:
            # In a call of the loop's: an error in it fails this device only.
            self.loop.run(self._go_on, left)

    def _watch_names(self) -> NameWatch:
        config = self._config
        paths = config.vhost_user, config.ivshmem, config.control, config.arena
        at = {path.parent for path in paths}
        return NameWatch(*map(self._common.directories.at, at))

    def _new_shelf(self, left: LeftBehind | None) -> Shelf | None:
        keeper = self._common.keeper
        if keeper is None:
            return None
        if left is None:
            return Shelf.new(keeper, self._capture)
        return Shelf(keeper, left.file, self._capture)

    def _save(self) -> None:
        """Keep the present state for a successor."""
        if self._shelf is not None:
            self._shelf.save()

    def _is_kept(self) -> bool:
        """Whether a successor will go on with the front-end's connection."""
        shelf, keeper = self._shelf, self._common.keeper
        return shelf is not None and shelf.active and not (keeper and keeper.problem)

    def _capture(self, keep: Keep) -> DeviceState:
        setup, master, slave = self.device.setup, self._master, self._slave
        return capture(
            self.device,
            keep,
            added=self._added,
            listeners=self._listening.capture(keep),
            master=master.capture(keep, setup) if master and setup else None,
            dropped=self.carrier.capture(),
            slave=slave.capture(keep) if slave else None,
        )

    def _open(
        self,
        config: DeviceConfig,
        inherited: socket.socket | None,
        stack: contextlib.ExitStack,
        left: LeftBehind | None,
    ) -> None:
        """Open everything that may fail; `stack` closes it in the reverse order."""
        make_directory(config.run_dir)
        # First, since a second daemon of this name must change nothing.  A connection
        # waits until `serve_control`.
        place = Place(config.control, 0o600, None)
        self._control = self._listening.listen(
            place, self._common.control, stack, start=False
        )
        if left is None:
            remove_left_windows(config)
        self.device = self._new_device(config, left)
        stack.callback(self.device.close)
        self._entrance = entrance_of(
            *(config, inherited, self.loop, self._log.warn_once),
            listen=lambda: self._listen(config.vhost_user, self._masters.arrive),
            take=self._serve_master,
        )
        self.carrier = self._new_carrier(self._entrance)
        stack.callback(self.carrier.close)
        if left is not None:
            stack.callback(self._close_connections)
            self._restore(left)
        self._listen(config.ivshmem, self._slaves.arrive, stack)
        self.carrier.begin(left.device.state.dropped if left is not None else None)
        self.loop.call_later(0, self._check_entrance)
        if inherited is not None and config.connect is None:
            self._take_inherited(inherited, stack)

    def _new_carrier(self, entrance: Entrance) -> MasterCarrier:
        return MasterCarrier(
            *(self._config, self.device, self.loop, entrance),
            peer_log=self._log,
            save=self._save,
        )

    def _new_device(self, config: DeviceConfig, left: LeftBehind | None) -> Device:
        with contextlib.ExitStack() as undo:
            store = self._store(config, left)
            undo.callback(store.close)
            windows = self._new_windows(store)
            relays = self._common.relays or LoopRelays(self.loop)
            device = Device(
                *(config, store, windows, self.loop, self._log, relays),
                save=self._save,
                kept=self._is_kept,
                left=None if left is None else left.device,
            )
            undo.pop_all()
        return device

    def _restore(self, left: LeftBehind) -> None:
        """Take over the connections of a daemon before us, without a word to them.

        Raises:
            StateError: something does not fit.
        """
        state, kept = left.device.state, left.device.kept
        self.device.windows.restore(state.windows, kept)
        if state.master is not None:
            connection = kept.socket(state.master.socket, listening=False)
            self._master = self._new_connection(
                connection, state.master.pid, returning=state.master.returning
            )
            restore_master(self.device, self._master, left.device)
        if state.slave is not None:
            known = state.slave.connection
            connection = kept.socket(known.socket, listening=False)
            self._slave = self._connect_slave(connection)
            restore_slave(self.device, self._slave, left.device, self.loop.time())
            doubtful = self._slave.restore(known, kept, self.device.store.file)
            if doubtful is not None:
                settle_doubt(self.device, self._slave, doubtful)

    def _finish_restoring(self, left: LeftBehind) -> None:
        """Answer what a daemon before us has served and not answered."""
        self._listening.close_left()  # of windows that are shown no more
        master, state = self._master, left.device.state.master
        if master is not None and state is not None:
            master.restore(state)

    def _go_on(self, left: LeftBehind) -> None:
        """Serve what a daemon before us has served."""
        self.device.go_on()
        self.carrier.go_on(self._master)
        if self._slave is not None:
            self._slave.start()
            self._slave.go_on()
        if self._master is None:
            return
        if left.in_pieces:
            self._master.drop("the daemon before us has read a part of a message")
        else:
            self._master.start()

    def _close_connections(self) -> None:
        for connection in (self._slave, self._master):
            if connection is not None:
                connection.close()

    def _new_windows(self, store: Store) -> ShownWindows:
        return ShownWindows(
            self._config,
            store,
            self._listen,
            loop=self.loop,
            linger=self._common.linger,
            warn=self._log.warn_once,
            plugger=self._plugger,
            changed=self._save,
        )

    def _store(self, config: DeviceConfig, left: LeftBehind | None) -> Store:
        ids = self._common.window_ids
        if left is not None:
            return left.store(config, ids)
        return (
            AttachedMemory(config, ids) if config.mode is Mode.ATTACH else Arena(config)
        )

    def _listen(
        self,
        path: Path,
        take: Callable[[socket.socket], None],
        stack: contextlib.ExitStack | None = None,
    ) -> PathListener:
        """Make a socket at `path`, and call `take` with each connection to it."""
        place = Place(path, self._config.access, self._config.group)
        return self._listening.listen(place, take, stack)

    def _check_entrance(self) -> None:
        """Connect to a front-end, if we do that, and none is connected."""
        if self._master is None:
            self._entrance.check()

    def _take_inherited(
        self, inherited: socket.socket, stack: contextlib.ExitStack
    ) -> None:
        """Serve a socket that we were given: it listens, or is the only connection."""
        if sockets.is_listening(inherited):
            listener = Listener(
                inherited, self.loop, self._masters.arrive, self._log.warn_once
            )
            stack.callback(listener.close)
        else:
            self._alone = True
            self._new_master(inherited)

    async def reserve_memory(self, stopped: Callable[[], bool]) -> None:
        """Take memory for all of the master's RAM now, unless `stopped`.

        Raises:
            HostError: there is no space left for it.
        """
        with contextlib.closing(self.device.store.reservation()) as steps:
            for step in steps:
                # In another thread, as the kernel clears each page: gigabytes take
                # seconds, in which the loop serves other devices.
                await asyncio.to_thread(step)
                if stopped():
                    return

    def serve_control(self) -> None:
        """Start to answer on the control socket."""
        self._control.start()

    def _new_master(self, connection: socket.socket) -> None:
        pid = sockets.peer_pid(connection)
        if self._master is not None and self._master.hung_up():
            self._master.close()
        elif self._master is not None and self._master.hangs:
            self._replace_master(self._master, pid)
        if self._master is not None:
            self._refuse_master(connection)
            return
        self._serve_master(connection, pid)

    def _serve_master(self, connection: socket.socket, pid: int) -> None:
        """Serve a front-end, the only one, of process `pid`."""
        returning = self._masters.visits(pid) > 0
        self.carrier.came(pid)
        self._master = self._new_connection(connection, pid, returning=returning)
        self.device.master_connected(self._master)
        self._master.start()
        self._common.changed()

    def _new_connection(
        self, connection: socket.socket, pid: int, *, returning: bool
    ) -> MasterConnection:
        return MasterConnection(
            connection,
            pid,
            self.loop,
            receive=self.device.receive,
            closed=self._master_closed,
            say_once=self._log.warn_once,
            returning=returning,
            shelf=self._shelf,
            conversation=self.conversation,
        )

    def _replace_master(self, master: MasterConnection, pid: int) -> None:
        """Disconnect a front-end that hangs, because another one has come."""
        self.say_once(
            f"front-end (pid {master.pid}) has to go: it {master.hangs}. "
            f"Pid {pid} takes its place"
        )
        silent = master.give_back()
        if silent is not None:
            # Perhaps a slave's QEMU, which would spin if its connection just ended.
            self._common.linger.refuse(silent)

    def _refuse_master(self, connection: socket.socket) -> None:
        assert self._master is not None, "no front-end connected"
        # Accept and close it: QEMU waits for an answer with its big lock held, so
        # one left in the listen queue would freeze its whole VM.
        pid = sockets.peer_pid(connection)
        self._masters.left(pid)
        connection.close()
        self.say_once(
            f"front-end (pid {pid}) refused: pid {self._master.pid} is connected"
        )

    def _new_slave(self, connection: socket.socket) -> None:
        pid = sockets.peer_pid(connection)
        if self._slaves.visits(pid) and sockets.has_sent(connection):
            # It is no slave, and has been told so.  A master's QEMU that starts waits
            # for an answer to what it sent: without one, it does not come back.
            self._slaves.left(pid)
            self._common.linger.leave(connection)
            return
        if self._slave is not None and self._slave.hung_up():
            self._slave.close()
        elif self._slave is not None:
            self._replace_hung_slave(self._slave, pid)
        if self._slave is not None:
            self._refuse_slave(connection)
            return
        self._slave = self._connect_slave(connection)
        self._slave.start()
        try:
            self.device.slave_connected(self._slave)
        except OSError as error:
            if not exhausted(error):
                raise
            self._slave.give_up(no_descriptors(error))
        self._common.changed()

    def _connect_slave(self, connection: socket.socket) -> SlaveConnection:
        linger, shelf = self._common.linger, self._shelf
        return SlaveConnection(self, connection, self.loop, linger, shelf)

    def _replace_hung_slave(self, slave: SlaveConnection, pid: int) -> None:
        """Disconnect a slave if it hangs, because another one has come."""
        hangs = slave_hangs(slave, self.device.agent, self.loop.time())
        if hangs:
            self.say_once(
                f"slave (pid {slave.pid}) has to go: it {hangs}. "
                f"Pid {pid} takes its place"
            )
            slave.close()
            self.device.windows.disconnect(slave.pid)

    def _refuse_slave(self, connection: socket.socket) -> None:
        assert self._slave is not None, "no slave connected"
        pid = sockets.peer_pid(connection)
        self._common.linger.refuse(connection)
        self.say_once(f"slave (pid {pid}) refused: pid {self._slave.pid} is connected")

    def _master_closed(self) -> None:
        assert self._master is not None, "no front-end connected"
        master, self._master = self._master, None
        self._note_visit(master)
        setup = self.device.setup
        refused = master.dropped and setup is not None and setup.has_to_go
        problem = setup.memory_problem if setup is not None and refused else ""
        self.device.master_gone(returns=self.carrier.off)
        if problem:
            self.carrier.refuse(master.pid, problem)
        self._common.changed()
        if self._alone:
            self._ended()

    def _note_visit(self, master: MasterConnection) -> None:
        """Remember a front-end that left without a ring that was ever ready."""
        setup = self.device.setup
        if setup is not None and setup.useful:
            self._masters.welcome(master.pid)
            self.carrier.left(master.pid)
            return
        self._masters.left(master.pid)
        if self._masters.visits(master.pid) == PUZZLING and not master.dropped:
            pairs = self._config.queue_pairs
            self.say_once(
                f"front-end (pid {master.pid}) rejects us: it ends the connection "
                "again and again. The messages of its QEMU say why: perhaps it asks "
                f"for more queues= than the queue-pairs of this device, which has "
                f"{pairs}"
            )

    def slave_closed(self) -> None:
        """Note that the slave's connection is closed."""
        if self._slave is not None and self._slave.spoke:
            self._slaves.left(self._slave.pid)
        self._slave = None
        self.device.slave_gone()
        self._common.changed()

    @property
    def socket_files(self) -> list[Json]:
        """Which files our sockets are, for the status."""
        return self._listening.describe()

    @property
    def connect_problem(self) -> str:
        """Why we cannot connect to a front-end that listens; empty if we can."""
        return self._entrance.problem if self._master is None else ""

    def say_once(self, text: str) -> None:
        """Warn of a peer; the same text again is counted, and not logged."""
        self._log.warn_once(text)

    def tick(self) -> None:
        """Do what the device does four times a second; what fails, fails it alone."""
        self._ticks += 1
        if self._ticks % SLOW_TICKS == 0:
            self.loop.run(self._slow_tick)
        self.loop.run(self._tick_device)

    def _tick_device(self) -> None:
        self.device.tick()
        self.carrier.look(self._master)

    def _slow_tick(self) -> None:
        """Do what the device does once a second."""
        names = self._names.changed()
        self._listening.check(names=names)
        # At most once a second: a front-end that rejects us has time to say why.
        self._check_entrance()
        self._check_master()
        self.device.slow_tick(names=names)
        self.state_clock.look(state(self.device, why_off=self.carrier.why_off))

    def _check_master(self) -> None:
        """Say that a front-end hangs: its user may wait for something to happen."""
        if self._master is not None and (hangs := self._master.hangs):
            self.say_once(f"front-end (pid {self._master.pid}) {hangs}")

    def _exhausted(self, error: OSError) -> None:
        """Drop a connection, since no descriptors are left."""
        if self._master is not None:
            self._master.drop(no_descriptors(error))
        elif self._slave is not None:
            self._slave.give_up(no_descriptors(error))

    def _fail(self, error: Exception) -> None:
        """Close the device after an error of ours: half of a device serves no VM."""
        # What a HostError says is for the user; of any other error we need to know
        # where it happened.
        expected = isinstance(error, HostError)
        log.error(
            "%s: failed, and is closed%s",
            self._config.name,
            Said(f": {error}" if expected else "", code_of(error)),
            exc_info=None if expected else error,
        )
        try:
            self.close()
        except Exception as second:
            log.debug("%s: closing it failed, too", self._config.name, exc_info=second)
        self._failed(error)

    def close(self) -> None:
        """Close the device and its sockets; an error in one step stops no other."""
        self._alone = False
        if self._shelf is not None:
            # What is kept stays as it is until the end, when it is forgotten.
            self._shelf.active = False
        with self._stack as stack:
            stack.callback(self._log.close)
            stack.callback(self.loop.close)
            stack.callback(self._masters.close)
            stack.callback(self._slaves.close)
            for connection in (self._slave, self._master):
                if connection is not None:
                    stack.callback(connection.close)
