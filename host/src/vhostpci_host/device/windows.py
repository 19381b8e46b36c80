# SPDX-License-Identifier: Apache-2.0
"""The windows that show the master's memory to the slave, and until when each does.

Theory of operation.  The front-end's memory table says which windows there are to be.
A new window gets its socket before the metadata names it, so that the agent never waits
for one that does not exist.  A window that the table names no more stays until the
agent says that it acts by a metadata that does not name it either, or has had its
time: the agent may have a packet in hand there.  Only then is its socket closed, or
its device unplugged.

Window 0, the slave's own device, comes and goes with the master if we plug it into the
slave VM.  Else the user has given it to the slave, and it is always there.
"""

from collections.abc import Callable
from contextlib import ExitStack

from vhostpci_shared import metadata as md

from ..config.device import DeviceConfig
from ..interfaces import Loop, Plug, Plugger, nothing
from ..ivshmem.linger import Linger
from ..ivshmem.window_socket import Listen, WindowSocket
from ..keeper.shelf import Left
from ..keeper.slots import StateError
from ..keeper.store import Keep
from ..memory.regions import Store
from .kept import UnnamedState, WindowsState

RETIRE = 1.0
"""Seconds after which a window goes, even if the agent says nothing."""


class ShownWindows:
    """The windows of one device that the slave can open, each with its socket.

    Args:
        config: the device's.
        store: has the windows' files.
        listen: makes the sockets.
        loop: calls them back.
        linger: keeps connections open that QEMU would spin on.
        warn: warns of a peer, but not each time that it tries again.
        plugger: hot-plugs the windows into a slave VM; None without hot-plug.
        changed: called when another window is shown, plugged or connected.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: Store,
        listen: Listen,
        *,
        loop: Loop,
        linger: Linger,
        warn: Callable[[str], None],
        plugger: Plugger | None = None,
        changed: Callable[[], None] = nothing,
    ) -> None:
        self.plugger = plugger
        self._changed = changed
        if plugger is not None:
            plugger.adopt(frozenset(), changed)
        self.device = False
        """Whether the slave VM is to have window 0 plugged."""
        self._config = config
        self._store = store
        self._listen = listen
        self._loop = loop
        self._linger = linger
        self._warn = warn
        self._sockets: dict[int, WindowSocket] = {}
        self._named: frozenset[int] = frozenset()
        self._device_named = False
        self._unnamed_since: dict[int, tuple[int, float]] = {}
        """For each window that is named no more: since which generation and time."""

    @property
    def numbers(self) -> frozenset[int]:
        """The windows that have a socket, without window 0, which always has one."""
        return frozenset(self._sockets)

    def show(self, numbers: frozenset[int], *, device: bool) -> None:
        """Show these windows from now on, and window 0 as well if `device`.

        Windows that are shown and not among them stay until `retire` closes them.

        Raises:
            HostError: there cannot be a socket for one.
        """
        self._named, self._device_named = numbers - {md.SLAVE_ID}, device
        for number in sorted(self._named - self._sockets.keys()):
            self._sockets[number] = self._new_socket(number)
        self.device |= device
        for number in self._unnamed_since.keys() - self._unnamed:
            del self._unnamed_since[number]  # it is named again
        self._changed()
        self._plug()

    def _new_socket(self, number: int) -> WindowSocket:
        return WindowSocket(
            number,
            self._store.files[number],
            self._config.window(number),
            self._listen,
            loop=self._loop,
            linger=self._linger,
            say_once=self._warn,
            changed=self._changed,
        )

    # What is kept for a successor.

    def capture(self, keep: Keep) -> WindowsState:
        """Return what a successor needs to go on with the windows."""
        plugged = self.plugger.plugged if self.plugger else frozenset()
        return WindowsState(
            sockets=tuple(one.capture(keep) for one in self._sockets.values()),
            named=tuple(sorted(self._named)),
            device=self.device,
            device_named=self._device_named,
            unnamed=tuple(
                UnnamedState(number, generation)
                for number, (generation, _) in self._unnamed_since.items()
            ),
            plugged=tuple(sorted(plugged)),
        )

    def restore(self, state: WindowsState, left: Left) -> None:
        """Go on with the windows of a daemon before us.

        Raises:
            StateError: a descriptor is missing, or a window has no file.
            HostError: there cannot be a socket for one.
        """
        for one in state.sockets:
            if one.number not in self._store.files:
                raise StateError(f"window {one.number} has no file")
            self._sockets[one.number] = self._new_socket(one.number)
            self._sockets[one.number].restore(one, left)
        if not frozenset(state.named) <= self.numbers:
            raise StateError(f"windows {state.named} without sockets")
        self._named, self.device = frozenset(state.named), state.device
        self._device_named = state.device_named
        # It has its time again, from now on.
        now = self._loop.time()
        for unnamed in state.unnamed:
            self._unnamed_since[unnamed.number] = unnamed.generation, now
        if self._unnamed_since.keys() - self._unnamed:
            raise StateError("windows that are to go are not there")
        if self.plugger is not None:
            plugs = self._plugs()
            ours = frozenset(one for one in plugs if one.window in state.plugged)
            self.plugger.adopt(ours, self._changed)
            self.plugger.want(plugs)

    @property
    def retiring(self) -> bool:
        """Whether a window is shown that the metadata names no more."""
        return bool(self._unnamed_since)

    @property
    def _unnamed(self) -> frozenset[int]:
        """The windows that are still shown, window 0 among them, and not named."""
        device = {md.SLAVE_ID} if self.device and not self._device_named else set()
        return self.numbers - self._named | device

    def replug(self) -> None:
        """Unplug window 0 and plug it again, if it is plugged by us."""
        device, self.device = self.device, False
        self._plug()
        self.device = device
        self._plug()

    def published(self, generation: int) -> None:
        """Note that the metadata of `generation` names what `show` was told to show."""
        for number in self._unnamed - self._unnamed_since.keys():
            self._unnamed_since[number] = generation, self._loop.time()

    def retire(self, reached: int, *, present: bool) -> bool:
        """Close the windows that the agent uses no more; return whether there were any.

        Args:
            reached: the generation that the agent acts by.
            present: whether there is an agent.
        """
        if not self._unnamed_since:
            return False
        now = self._loop.time()
        unused = {
            number
            for number, (generation, since) in self._unnamed_since.items()
            if not present or reached >= generation or now - since >= RETIRE
        }
        if not unused:
            return False
        for number in sorted(unused):
            del self._unnamed_since[number]
            if number == md.SLAVE_ID:
                self.device = False
            else:
                self._sockets.pop(number).close()
        self._changed()
        self._plug()
        return True

    def disconnect(self, pid: int) -> None:
        """Disconnect a process that hangs from all windows: another takes its place."""
        for window in self._sockets.values():
            window.disconnect(pid)

    def _plug(self) -> None:
        """Have the plugger plug what is shown, and nothing else."""
        if self.plugger is not None:
            self.plugger.want(self._plugs())

    def _plugs(self) -> frozenset[Plug]:
        """Return the windows that the slave VM is to have."""
        config = self._config
        plugs = {
            Plug(
                window=number,
                socket=config.window(number),
                vectors=1,
                size=self._store.files[number].size,
            )
            for number in self._sockets
        }
        if self.device:
            plugs.add(
                Plug(
                    window=md.SLAVE_ID,
                    socket=config.ivshmem,
                    vectors=config.vectors,
                    size=self._store.size,
                )
            )
        return frozenset(plugs)

    def connected(self, number: int) -> bool:
        """Return whether the slave has opened this window."""
        window = self._sockets.get(number)
        return window is not None and window.connected

    def close(self) -> None:
        """Close every socket, even if closing one fails."""
        with ExitStack() as stack:
            while self._sockets:
                stack.callback(self._sockets.popitem()[1].close)
