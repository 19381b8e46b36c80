# SPDX-License-Identifier: Apache-2.0
"""The windows with the master's memory: which are shown, to whom, and until when.

Theory of operation.  `Shown` follows what the front-end's memory table names.  A new
window has its socket before the metadata names it.  One that is named no more goes
when the agent has said that it let go of it, or has had its time: only then is the
device unplugged, or the connection closed.  The slave's own device, window 0, comes
and goes with the master where we plug it; else it is always there.

`WindowSocket` is one window's socket.
"""

from typing import Protocol

from ..config.device import DeviceConfig
from ..interfaces import Loop, Plug, Plugger
from ..memory.regions import Store, WindowFile

RETIRE = 1.0
"""Seconds after which a window goes, even if the agent says nothing."""


class WindowHost(Protocol):
    """Who shows windows with the master's memory to the slave."""

    def show(self, number: int, window: WindowFile) -> None:
        """Show the window to whoever connects for it.

        Raises:
            HostError: there cannot be a socket for it.
        """

    def hide(self, number: int) -> None:
        """Show it no longer."""

    def connected(self, number: int) -> bool:
        """Whether somebody has it."""
        ...


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
