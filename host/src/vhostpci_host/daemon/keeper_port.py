# SPDX-License-Identifier: Apache-2.0
"""What a daemon and its keeper say to each other, and how it makes room for the next.

The devices keep their descriptors by themselves (`keeper/shelf.py`).
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from .. import sealed_memfd
from ..errors import HostError
from ..interfaces import Json, Loop
from ..keeper import notices
from ..keeper.attempts import Attempts
from ..keeper.store import CONTROL, FILE, DescriptorStore
from . import left_behind
from .control import Request
from .given import GivenSockets
from .left_behind import LeftBehind
from .listeners import PathListener, Place

log = logging.getLogger(__name__)

ALIVE_TICKS = 2
"""Ticks of the daemon from one word to the keeper to the next."""
ANSWERED = 0.1
"""Seconds until an answer to a control command is in the caller's hands."""


class KeeperPort:
    """The daemon's end of its line to the keeper.

    Args:
        store: keeps the descriptors; closed with this object; None without a keeper.
    """

    def __init__(self, store: DescriptorStore | None) -> None:
        self.store = store
        self.given = GivenSockets() if store is None else GivenSockets(store.take())
        """The sockets that systemd has made."""
        counts = store is not None and not store.systemd
        self._is_ready = False
        self._parent = os.getppid()
        """Our keeper, if it is a process that has started us."""
        self._attempts = None if store is None or counts else Attempts(store)
        self._ticks = 0
        self._control = ""
        """The name under which the daemon's control socket is kept."""
        self._file = ""
        """The name under which the text of the configuration file is kept."""

    @property
    def is_systemd(self) -> bool:
        """Whether the keeper is systemd."""
        return self.store is not None and self.store.systemd

    def left(self) -> dict[str, LeftBehind]:
        """Return what a daemon before us has left of each device, by its name."""
        return {} if self.store is None else left_behind.find(self.store)

    def taken(self, left: LeftBehind, others: Iterable[LeftBehind]) -> None:
        """Close what a device that goes on has taken, and no other one is to take."""
        if self.store is not None:
            self.store.close_taken(
                left.names.difference(*(one.names for one in others))
            )

    def listen(
        self,
        path: Path,
        loop: Loop,
        take: Callable[[socket.socket], None],
        complain: Callable[[str], None],
    ) -> PathListener:
        """Listen at the daemon's control socket, which its successor has, too.

        So a command that comes while there is no daemon waits for the next one.

        Raises:
            HostError: the socket cannot be made.
        """
        left = self.store and left_behind.control_socket(self.store.left, path)
        place = Place(path, 0o600, None)
        left = self.given.prefer(left or None, place)
        listener = PathListener(place, loop, take, complain, left=left)
        self.keep_control(listener)
        return listener

    def keep_file(self, text: bytes) -> None:
        """Keep the text of the configuration file.

        A successor must not end because the file is just being changed.
        """
        if self.store is None:
            return
        with sealed_memfd.make("vhostpci-config", len(text)) as file:
            os.write(file.fileno(), text)
            name = self.store.hold(file, FILE)
        before, self._file = self._file, name
        if before:
            self.store.release(before)

    def keep_control(self, listener: PathListener) -> None:
        """Keep the control socket that there is now, if it is another one."""
        store, before = self.store, self._control
        if store is None:
            return
        if before and store.name_of(listener.server) == before:
            return
        self._control = store.hold(listener.server, CONTROL)
        if before:
            store.release(before)

    async def settle(self) -> None:
        """Wait until the keeper has nothing more of devices that were closed."""
        if self.store is not None:
            await self.store.settle()

    def finish_start(self) -> None:
        """Close what no device has taken."""
        if self.store is not None:
            self.store.finish_start()

    def ready(self, count: int) -> None:
        """Say that `count` devices are served."""
        self.given.finish_start()
        if self._attempts is not None:
            self._attempts.ready()
        self._is_ready = True
        if self.store is not None:
            text = notices.status(f"serving {count} devices")
            # Alive as well: from now on it is noticed if we hang.
            self.store.say(f"{notices.READY}\n{notices.ALIVE}\n{text}")

    def tick(self) -> None:
        """Say that the daemon lives, and see whether the keeper does."""
        self._ticks += 1
        if self.store is not None and self._ticks % ALIVE_TICKS == 0:
            self.store.say_alive()
            self.store.check()

    def end(self) -> None:
        """Say that the daemon is about to end by itself."""
        if self.store is not None:
            self.store.say(notices.STOPPING)

    def describe(self) -> Json | None:
        """Return what `status` says of the keeper."""
        if self.store is None:
            return None
        kind = "systemd" if self.store.systemd else "process"
        return {"kind": kind, "problem": self.store.problem or None}

    def on_signal(self) -> None:
        """Make room for a successor, because SIGUSR2 asks for it."""
        if self.store is None or self.store.problem:
            log.warning("SIGUSR2 is ignored: there is no keeper for a successor")
        else:
            self.make_room()

    async def restart(self, _: Request) -> None:
        """Have a successor started; return only if that is systemd's to do.

        Raises:
            HostError: there is no keeper, or the successor does not start.
        """
        store = self.store
        if why := self._no_keeper():
            raise HostError(
                f"there is no keeper to start a successor: {why}", code="H085"
            )
        assert store is not None, "else there is no keeper"
        if store.systemd:
            asyncio.get_running_loop().call_later(ANSWERED, self.make_room)
            return
        failed = store.failed_heirs
        # It starts the successor before it asks us to make room: the caller's
        # connection ends then.
        # System calls: kill(SIGUSR2).
        os.kill(self._parent, signal.SIGUSR2)
        while store.failed_heirs == failed and not store.problem:
            await asyncio.sleep(ANSWERED)
        raise HostError(
            store.problem
            or "the successor does not start, and the log says why: this "
            f"daemon (pid {os.getpid()}) goes on",
            code="H086",
        )

    def _no_keeper(self) -> str:
        """Return why no keeper can start a successor; empty if one can.

        It may have been killed just now.  Another process is our parent then, and a
        signal that is meant for the keeper would end that.
        """
        if self.store is None:
            return "none is used"
        self.store.check()
        # System calls: getppid.
        if self.store.problem or self.store.systemd:
            return self.store.problem
        return "" if os.getppid() == self._parent else "it has just ended"

    def make_room(self, status: int = notices.HANDED_OVER) -> None:
        """End at once, and close nothing: a successor goes on."""
        log.info("makes room for its successor")
        self.explained()
        logging.shutdown()
        # Without Python's end, in which objects close what they have.
        os._exit(status)

    def explained(self) -> None:
        """Note that the daemon ends, and that what was left to it is not to blame."""
        if self._attempts is not None and not self._is_ready:
            self._attempts.explained()

    def close(self) -> None:
        """Close our end; what is kept stays."""
        self.given.close()
        if self._attempts is not None:
            self._attempts.close()
        if self.store is not None:
            self.store.close()


async def pid(_: Request) -> int:
    """Return the process that serves."""
    return os.getpid()
