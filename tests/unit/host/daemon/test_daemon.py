# SPDX-License-Identifier: Apache-2.0
"""Devices that are added and removed while the daemon ends, or while they fail."""

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.keeper import FakeKeeper
from tests.fakes.ports import RecordedPlugger
from tests.fakes.windows import MIB
from tests.unit.host.daemon.play import player
from tests.waiting import TIMEOUT
from vhostpci_host import sockets
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.daemon import daemon as daemon_module
from vhostpci_host.daemon.daemon import Daemon
from vhostpci_host.daemon.server import SLOW_TICKS, Server
from vhostpci_host.errors import HostError
from vhostpci_host.hotplug.pool import SlavePool
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.room import Promise


class SlowPlugger(RecordedPlugger):
    """A plugger for a slave VM whose guest keeps its windows until `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.released = asyncio.Event()

    async def close(self) -> None:
        self.asked.set()
        await self.released.wait()


class Scene:
    """A daemon with many devices, in this process's loop, and its control socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemon = Daemon({})

    def config(self, **options: Any) -> DeviceConfig:
        return DeviceConfig(
            name="dev",
            mode=Mode.ARENA,
            memory=16 * MIB,
            run_dir=self.directory,
            memory_dir=self.directory,
            **options,
        )

    def files(self) -> list[str]:
        names = sorted(path.name for path in self.directory.iterdir())
        return [name for name in names if name != "control"]

    async def ask(self, command: str) -> Any:
        """Return the answer to a command about the device."""
        path = str(self.directory / "control")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(json.dumps({"command": command, "name": "dev"}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return answer


Play = Callable[[Scene], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Play], None]:
    """Run a test's part in the loop of a daemon that is closed after it."""
    return player(Scene, tmp_path)


@pytest.fixture
def reserving(monkeypatch: pytest.MonkeyPatch) -> dict[str, asyncio.Event]:
    """Let the reservation of memory, which `add` waits for, last until the test's end.

    The events are `begun` and `end`; make them in the loop of the test.
    """
    events: dict[str, asyncio.Event] = {}

    async def reserve(self: Server, stopped: Callable[[], bool]) -> None:
        events["begun"].set()
        await events["end"].wait()

    monkeypatch.setattr(Server, "reserve_memory", reserve)
    return events


async def begin_to_add(
    scene: Scene, reserving: dict[str, asyncio.Event]
) -> asyncio.Task[None]:
    """Add a device; return when it waits for its memory."""
    reserving |= {"begun": asyncio.Event(), "end": asyncio.Event()}
    adding = asyncio.create_task(scene.daemon.add(scene.config(prealloc=True)))
    await reserving["begun"].wait()
    return adding


def test_device_whose_control_socket_cannot_be_served_is_closed(
    play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def part(scene: Scene) -> None:
        def refuse(self: Server) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(Server, "serve_control", refuse)
            with pytest.raises(HostError, match="no descriptors are left"):
                await scene.daemon.add(scene.config())
        assert scene.files() == []
        await scene.daemon.add(scene.config())

    play(part)


def test_daemon_may_be_closed_while_a_device_is_added(
    play: Callable[[Play], None], reserving: dict[str, asyncio.Event]
) -> None:
    async def part(scene: Scene) -> None:
        adding = await begin_to_add(scene, reserving)
        scene.daemon.stop()
        await scene.daemon.close()
        reserving["end"].set()
        with pytest.raises(HostError, match="the daemon is ending"):
            await adding
        assert scene.files() == []

    play(part)


def test_device_that_is_being_added_cannot_be_removed_yet(
    play: Callable[[Play], None], reserving: dict[str, asyncio.Event]
) -> None:
    async def part(scene: Scene) -> None:
        adding = await begin_to_add(scene, reserving)
        answer = await scene.ask("remove")
        assert answer["error"] == "device 'dev' is still being added: wait"
        reserving["end"].set()
        await adding
        assert (await scene.ask("remove"))["ok"]

    play(part)


def test_device_that_fails_while_it_is_added_is_refused_with_the_reason(
    play: Callable[[Play], None],
    reserving: dict[str, asyncio.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Server) -> None:
        raise HostError("the moon is full")

    async def part(scene: Scene) -> None:
        adding = await begin_to_add(scene, reserving)
        with monkeypatch.context() as patched:
            patched.setattr("vhostpci_host.device.device.Device.tick", fail)
            await asyncio.sleep(2 * daemon_module.TICK)
        reserving["end"].set()
        with pytest.raises(HostError, match="the moon is full"):
            await adding
        assert scene.files() == []
        assert (await scene.ask("list"))["result"] == []

    play(part)


def test_daemon_may_be_closed_while_a_device_is_removed(
    play: Callable[[Play], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def part(scene: Scene) -> None:
        plugger = SlowPlugger()
        monkeypatch.setattr(SlavePool, "plugger", lambda *_: plugger)
        await scene.daemon.add(scene.config())
        scene.daemon.stop()
        closing = asyncio.create_task(scene.daemon.close())
        await plugger.asked.wait()
        # It waits for the same unplug, and goes on after the daemon has closed.
        removing = asyncio.create_task(scene.daemon.remove("dev"))
        await asyncio.sleep(0)
        plugger.released.set()
        await asyncio.gather(closing, removing)
        assert scene.files() == []

    play(part)
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


@pytest.mark.parametrize("command", ["add", "remove"])
def test_daemon_that_ends_changes_no_device(
    play: Callable[[Play], None], command: str
) -> None:
    async def part(scene: Scene) -> None:
        await scene.daemon.add(scene.config())
        scene.daemon.stop()
        error = (await scene.ask(command))["error"]
        assert error.startswith("the daemon is ending: try again")
        assert (await scene.ask("status"))["ok"]

    play(part)


def test_stolen_control_socket_is_noticed_and_made_again(
    play: Callable[[Play], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def part(scene: Scene) -> None:
        path = scene.directory / "control"
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as thief:
            thief.bind(str(path))
            thief.listen()
            await asyncio.sleep(daemon_module.TICK * (SLOW_TICKS + 2))
            assert (await scene.ask("list"))["ok"]

    play(part)
    assert "control was replaced by pid" in caplog.text


def test_stolen_control_socket_is_made_again_once_there_is_a_descriptor(
    play: Callable[[Play], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def part(scene: Scene) -> None:
        (scene.directory / "control").unlink()
        with monkeypatch.context() as patched:
            patched.setattr(sockets, "listen_again", refuse)
            await asyncio.sleep(daemon_module.TICK * (SLOW_TICKS + 2))
        await asyncio.sleep(daemon_module.TICK * (SLOW_TICKS + 1))
        assert (await scene.ask("list"))["ok"]

    play(part)
    assert "control again: no descriptors are left" in caplog.text


def test_room_that_other_programs_take_is_warned_of_once(
    play: Callable[[Play], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(daemon_module, "ROOM_TICKS", 1)
    free = [64 * MIB]

    def promised(arena: Arena) -> Promise:
        return Promise("dev", Path("/dev/shm"), 1, arena.ram, free[-1])

    async def part(scene: Scene) -> None:
        await scene.daemon.add(scene.config())
        for now, lines in ((64 * MIB, 0), (4 * MIB, 1), (64 * MIB, 1), (MIB, 2)):
            free.append(now)
            await asyncio.sleep(3 * daemon_module.TICK)
            assert caplog.text.count("MiB free, and the memory of dev may") == lines

    monkeypatch.setattr(Arena, "promise", promised)
    play(part)


class Successions:
    """Daemons one after the other in one loop, and the pluggers that they make."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.keeper = FakeKeeper()
        self.pluggers: list[tuple[DeviceConfig, RecordedPlugger]] = []
        self.daemons: list[Daemon] = []
        monkeypatch.setattr(SlavePool, "plugger", lambda _, config: self._plug(config))

    def _plug(self, config: DeviceConfig) -> RecordedPlugger | None:
        if not config.plugged:
            return None
        plugger = RecordedPlugger()
        self.pluggers.append((config, plugger))
        return plugger

    def next(self) -> Daemon:
        """Return the successor; the one before is not asked any more."""
        if self.daemons:
            self.keeper.replace_store()
        self.daemons.append(Daemon({}, self.keeper.store))
        return self.daemons[-1]

    def config(self, **options: Any) -> DeviceConfig:
        return DeviceConfig(
            name="dev",
            mode=Mode.ATTACH,
            run_dir=self.directory,
            memory_dir=self.directory,
            **options,
        )

    async def close(self) -> None:
        for daemon in reversed(self.daemons):
            await daemon.close()
        self.keeper.close()


@pytest.mark.parametrize("there", [True, False], ids=["changed", "removed"])
def test_windows_of_a_device_that_does_not_go_on_are_unplugged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """It is in another VM, or in no file, when the daemon's successor starts."""

    async def run() -> None:
        scene = Successions(tmp_path, monkeypatch)
        here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
        try:
            await scene.next().add(scene.config(slave_qmp=here))
            await scene.next().restore(
                [scene.config(slave_qmp=elsewhere)] if there else []
            )
            (config, plugger) = scene.pluggers[1]
            assert (config.name, config.slave_qmp) == ("dev", here)
            assert plugger.closed
            assert len(scene.pluggers) == 2
        finally:
            await scene.close()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT))


def test_command_that_comes_while_there_is_no_daemon_waits_for_the_next_one(
    tmp_path: Path,
) -> None:
    """Also after the socket was replaced by another process."""

    async def run() -> None:
        keeper = FakeKeeper()
        try:
            first = Daemon({}, keeper.store)
            first.serve_control(tmp_path)
            (tmp_path / "control").unlink()
            for _ in range(SLOW_TICKS):
                first._tick()
            first.loop.remove_reader(listening(first))
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(tmp_path / "control"))
                caller.sendall(b'{"command": "list"}\n')
                second = Daemon({}, keeper.replace_store())
                second.serve_control(tmp_path)
                await second.restore([])
                caller.setblocking(False)
                answer = await second.loop.sock_recv(caller, 100)
                assert json.loads(answer) == {"ok": True, "result": []}
            assert len(keeper.kept) == 1
            await second.close()
            await first.close()
        finally:
            keeper.close()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT))


def listening(daemon: Daemon) -> int:
    assert daemon._listener is not None
    return daemon._listener.server.fileno()
