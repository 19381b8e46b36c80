# SPDX-License-Identifier: Apache-2.0
"""A state that an earlier daemon has left, changed in any way.

A daemon serves a front-end and a slave, and ends as if it was killed.  An input says
what becomes of its state: of values, marks and descriptors.  The successor goes on with
it, or refuses it and begins without; in both cases it serves who connects then.
"""

import gc
import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress

from tests.descriptors import open_descriptors
from tests.fakes.frontend import Dropped, FrontEnd, Refused
from tests.fakes.keeper import FakeKeeper
from tests.fuzz.edges.choices import NUMBERS, Choices
from tests.fuzz.edges.files import KINDS, Files
from tests.fuzz.edges.host import SETTLED, Host, Slave, World
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.daemon import left_behind
from vhostpci_host.daemon.left_behind import LeftBehind
from vhostpci_host.errors import HostError
from vhostpci_host.fds import Fd
from vhostpci_host.keeper.slots import Mark, StateError, StateFile
from vhostpci_host.memory.arena import Arena
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

MOST = 6
TEXTS = (
    "",
    "d1",
    "s1",
    "dev",
    "x" * 300,
    "/etc/passwd",
    "é",
    "\0",
    "running",
    "stopped",
)


class Play:
    """One input: what was left, and the daemon that goes on with it."""

    def __init__(self, world: World, choices: Choices, undo: ExitStack) -> None:
        self.choices = choices
        self.world = world
        mode = choices.byte()
        self._attach = bool(mode & 1)
        self.keeper = FakeKeeper()
        undo.callback(self.keeper.close)
        before = _owners()
        host = Host(world, attach=self._attach, keeper=self.keeper)
        undo.callback(host.memory.close)
        self.slave = Slave(host, choices.of(Slave.KINDS))
        undo.callback(self.slave.qemu.close)
        undo.callback(self.slave.socket.close)
        self.front_end = self._start(host)
        undo.callback(self.front_end.close)
        self._files = Files(host.memory.fileno(), world.directory)
        undo.callback(self._files.close)
        _kill(host, before)

    def _start(self, host: Host) -> FrontEnd:
        """Connect a front-end; its driver is loaded, or not."""
        front_end = host.start_front_end() if self.choices.flag() else host.front_end()
        self.slave.read()
        host.pass_time(SETTLED)
        return front_end

    def spoil(self) -> None:
        """Change what was left."""
        (name,) = (name for name in self.keeper.kept if name.startswith("s"))
        with closing(StateFile.left(self.keeper.kept[name].copy())) as file:
            text = file.read()
            for _ in range(MOST):
                if not self.choices.left:
                    break
                text = self.choices.of(CHANGES)(self, text, file)
            file.write(text)

    def change_value(self, text: bytes, _: StateFile) -> bytes:
        """Change a value, or the length of a list, or the names of a table."""
        with suppress(ValueError):
            root = [json.loads(text)]
            self._change_below(root)
            return json.dumps(root[0]).encode()
        return text

    def _change_below(self, place: list[object] | dict[str, object]) -> None:
        """Walk down to some value, and change it."""
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = self.choices.of(keys)
            value = place[key]  # type: ignore[index, call-overload]
            inside = isinstance(value, (list, dict)) and value
            if not inside or self.choices.byte() < 16:
                place[key] = self._other(value)  # type: ignore[index, call-overload]
                return
            assert isinstance(value, (list, dict))
            place = value

    def _other(self, value: object) -> object:
        """Return another value, often one of the same kind."""
        if self.choices.byte() < 24:
            return self.choices.of((None, True, 0, "", [], {}, -1, 1.5, 2**64))
        if isinstance(value, bool) or value is None:
            return self.choices.of((False, True, None, "d1", 0))
        if isinstance(value, int):
            return self.choices.of((value + 1, max(value - 1, 0), 0, *NUMBERS))
        if isinstance(value, list):
            return self.choices.of((value[:-1], value + value[:1], value[::-1]))
        return self.choices.of((*sorted(self.keeper.kept), *TEXTS))

    def change_bytes(self, text: bytes, _: StateFile) -> bytes:
        """Put some bytes into the text."""
        at = self.choices.number() % (len(text) + 1)
        new = self.choices.raw(self.choices.below(9))
        return text[:at] + new + text[at + self.choices.below(9) :]

    def change_mark(self, text: bytes, file: StateFile) -> bytes:
        """Change what counts messages."""
        mark = self.choices.of(tuple(Mark))
        file.set_mark(mark, self.choices.number((file.mark(mark) + 1) % 2**64))
        return text

    def change_descriptor(self, text: bytes, _: StateFile) -> bytes:
        """Put another descriptor in the place of one that is kept, or lose it."""
        names = sorted(name for name in self.keeper.kept if name.startswith("d"))
        name = self.choices.of(names or [""])
        if name:
            self.keeper.kept.pop(name).close()
        if name and self.choices.flag():
            self.keeper.kept[name] = self._files.new(self.choices.of(tuple(KINDS)))
        return text

    def write_raw(self, text: bytes, file: StateFile) -> bytes:
        """Write anywhere into the file."""
        at = self.choices.of((0, 8, 0x40, 0x1000, 0x1008, 0x100C))
        os.pwrite(file.file.fileno(), self.choices.raw(8), at)
        return text

    def go_on(self, undo: ExitStack) -> Host:
        """Start the successor: it goes on, or begins without what was left."""
        store = self.keeper.replace_store()
        self.world.new_loop()
        left = self._find()
        host = None
        if left is not None:
            host = self._restored(left)
        if host is None:
            store.finish_start()
            self.keeper.take()
            host = Host(self.world, attach=self._attach, keeper=self.keeper)
        else:
            store.finish_start()
        undo.callback(host.close_but_keeper)
        return host

    def _find(self) -> LeftBehind | None:
        found = left_behind.find(self.keeper.store)
        left = found.pop("dev", None)
        for other in found.values():
            other.file.close()
        return left

    def _restored(self, left: LeftBehind) -> Host | None:
        """Go on with what was left; None if it cannot be used (`Daemon._restore`)."""
        try:
            with ExitStack() as undo:
                undo.callback(left.file.close)
                left.check(self._config())
                undo.pop_all()
            return Host(self.world, attach=self._attach, keeper=self.keeper, left=left)
        except (StateError, HostError, ProtocolError, OSError):
            return None

    def _config(self) -> DeviceConfig:
        return Host.configuration(self.world, "dev", attach=self._attach)

    def use(self, host: Host) -> None:
        """Speak to the successor as the two that were connected before."""
        host.pass_time(SETTLED)
        self.front_end.transport.host = host  # type: ignore[attr-defined]
        for _ in range(2):
            with suppress(Dropped, Refused):
                self.front_end.ask(Request.GET_FEATURES)
        with suppress(Dropped, Refused):
            self.front_end.ask(Request.GET_VRING_BASE, vu.VringState(0, 0))
        host.show()
        host.pass_time(1.0)
        # What the slave was told is not checked: the state may have lied about that.
        self.front_end.transport.socket.close()  # type: ignore[attr-defined]
        self.slave.socket.close()
        host.pass_time(SETTLED)
        host.serve_good_ones()


Change = Callable[[Play, bytes, StateFile], bytes]
CHANGES: tuple[Change, ...] = (
    *(Play.change_value, Play.change_value, Play.change_value, Play.change_mark),
    *(Play.change_descriptor, Play.change_bytes, Play.write_raw),
)


def _owners() -> set[int]:
    """Return the identities of all objects that have descriptors."""
    return {id(one) for one in gc.get_objects() if isinstance(one, Fd | socket.socket)}


def _kill(host: Host, before: set[int]) -> None:
    """Close all that the daemon has, as the end of its process does."""
    assert host.keeper is not None
    host.keeper.take()
    host.keeper.store.close()
    host.cancel()
    store = host.server.device.store
    if isinstance(store, Arena):
        store._region.close()
    kept = {id(fd) for fd in (*host.keeper.kept.values(), host.memory)}
    clients = {id(one) for one in host.clients}
    for one in gc.get_objects():
        if (
            isinstance(one, Fd | socket.socket)
            and id(one) not in before | kept | clients
        ):
            closed = one.closed if isinstance(one, Fd) else one.fileno() < 0
            if not closed:
                os.close(one.detach())


def make() -> World:
    """Return what is the same for all inputs."""
    world = World(other=False)
    gc.freeze()  # else each input walks through all objects of all modules, three times
    world.undo.callback(gc.unfreeze)
    return world


def run(world: World, data: bytes) -> None:
    """Do what an input says; fail if the successor does not bear it."""
    gc.collect()
    before = open_descriptors()
    with ExitStack() as undo:
        world.new_loop()
        play = Play(world, Choices(data), undo)
        play.spoil()
        host = play.go_on(undo)
        play.use(host)
    del play, host
    gc.collect()
    left = open_descriptors()
    assert len(left) == len(before), f"{before} became {left}"
    for path in world.directory.iterdir():
        path.unlink()
