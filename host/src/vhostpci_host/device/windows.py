# SPDX-License-Identifier: Apache-2.0
"""The windows with the master's memory: which are shown, to whom, and until when.

Theory of operation.  `Shown` follows what the front-end's memory table names.  A new
window has its socket before the metadata names it.  One that is named no more goes
when the agent has said that it let go of it, or has had its time: only then is the
device unplugged, or the connection closed.  The slave's own device, window 0, comes
and goes with the master where we plug it; else it is always there.

`WindowSocket` is one window's socket.
"""

import socket
from collections.abc import Callable
from contextlib import ExitStack

from .. import sockets
from ..config.device import DeviceConfig
from ..fds import Notifier
from ..interfaces import Loop, Plug, Plugger, WindowHost
from ..ivshmem import linger
from ..ivshmem.peers import window_handshake
from ..listener import Listener
from ..memory.regions import Store, WindowFile
from ..vhost_user.connection import SlaveConnection

RETIRE = 1.0
"""Seconds after which a window goes, even if the agent says nothing."""


class Shown:
    """The windows that the slave is shown.

    Args:
        config: the device's.
        store: where the windows' files are.
        host: who has a socket for each.
        plugger: who plugs them into a slave VM, if anybody.
        loop: for its clock.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: Store,
        host: WindowHost,
        plugger: Plugger | None,
        loop: Loop,
    ) -> None:
        self.numbers: frozenset[int] = frozenset()
        """All that have a socket, window 0 not counted."""
        self.device = False
        """Whether the slave is to have window 0 plugged."""
        self._config = config
        self._store = store
        self._host = host
        self._plugger = plugger
        self._loop = loop
        self._wanted: frozenset[int] = frozenset()
        self._device_wanted = False
        self._void: dict[int, tuple[int, float]] = {}
        """By which generation each was named no more, and when that was published."""

    def want(self, numbers: frozenset[int], *, device: bool) -> None:
        """Show these windows, and window 0 as well if `device`.

        Others stay until `retire`.

        Raises:
            HostError: there cannot be a socket for one.
        """
        self._wanted, self._device_wanted = numbers - {0}, device
        for number in sorted(self._wanted - self.numbers):
            self._host.show(number, self._store.files[number])
            self.numbers |= {number}
        self.device |= device
        for number in self._void.keys() - self._unwanted:
            del self._void[number]
        self._plug()

    @property
    def _unwanted(self) -> frozenset[int]:
        """Those that are shown, window 0 among them, and not wanted."""
        device = {0} if self.device and not self._device_wanted else set()
        return self.numbers - self._wanted | device

    def replug(self) -> None:
        """Have the slave's own device replaced by a new one, if we plug it at all."""
        device, self.device = self.device, False
        self._plug()
        self.device = device
        self._plug()

    def published(self, generation: int) -> None:
        """The metadata of `generation` names what is wanted, and nothing else."""
        for number in self._unwanted - self._void.keys():
            self._void[number] = generation, self._loop.time()

    def retire(self, reached: int, *, present: bool) -> None:
        """Hide what an agent at generation `reached`, if there is one, let go of."""
        now = self._loop.time()
        gone = {
            number
            for number, (generation, since) in self._void.items()
            if not present or reached >= generation or now - since >= RETIRE
        }
        if not gone:
            return
        for number in sorted(gone):
            del self._void[number]
            if number == 0:
                self.device = False
            else:
                self._host.hide(number)
        self.numbers -= gone
        self._plug()

    def _plug(self) -> None:
        """Have the slave VM plugged what it is shown, and can take."""
        if self._plugger is None:
            return
        config = self._config
        plugs = {
            Plug(
                window=number,
                socket=config.window(number),
                vectors=1,
                size=self._store.files[number].size,
            )
            for number in self.numbers
        }
        if self.device:
            plugs.add(
                Plug(
                    window=0,
                    socket=config.ivshmem,
                    vectors=config.vectors,
                    size=self._store.size,
                )
            )
        self._plugger.want(frozenset(plugs))

    def connected(self, number: int) -> bool:
        """Whether the slave has the window."""
        return self._host.connected(number)


class WindowSocket:
    """The socket of one window: whoever connects has the master's memory.

    Args:
        number: the window's.
        window: its file.
        listen: makes the listening socket that calls what it is given.
        loop: the daemon's.
        say_once: warns of a peer.
    """

    def __init__(
        self,
        number: int,
        window: WindowFile,
        listen: Callable[[Callable[[socket.socket], None]], Listener],
        loop: Loop,
        say_once: Callable[[str], None],
    ) -> None:
        self.say_once = say_once
        self._number = number
        self._size = window.size
        self._fits_bar = window.fits_bar
        self._loop = loop
        self._connection: SlaveConnection | None = None
        with ExitStack() as undo:
            self._file = undo.enter_context(window.file.copy())
            self._vector = undo.enter_context(Notifier.new())
            self._listener = listen(self._new)
            undo.pop_all()

    @property
    def connected(self) -> bool:
        """Whether somebody has the window."""
        return self._connection is not None

    def _new(self, connection: socket.socket) -> None:
        if self._connection is not None and self._connection.hung_up():
            self._connection.close()
        why = self._why_not(connection)
        if why is not None:
            linger.refuse(connection, self._loop)
            self.say_once(why)
            return
        self._connection = SlaveConnection(self, connection, self._loop)
        self._connection.start()
        self._connection.send(window_handshake(self._number, self._file, self._vector))

    def _why_not(self, connection: socket.socket) -> str | None:
        """Return why this peer cannot have the window."""
        who = f"window {self._number} refused to pid {sockets.peer_pid(connection)}"
        if self._connection is not None:
            return f"{who}: pid {self._connection.pid} has it"
        if not self._fits_bar and not sockets.is_process(connection):
            return (
                f"{who}: its {self._size} bytes are no power of two, as a VM's BAR "
                "has to be; give the master's memory backend such a size, or use a "
                "process (vhostpci-guest run --socket)"
            )
        return None

    def slave_closed(self) -> None:
        """Nobody has it any more."""
        self._connection = None

    def close(self) -> None:
        """Show the window no longer."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._file.close()
        self._vector.close()
