# SPDX-License-Identifier: Apache-2.0
"""Subscribers learn what happens, and cannot harm the daemon."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.windows import MIB
from tests.unit.host.daemon.play import player
from tests.waiting import TIMEOUT, until
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.daemon import control, monitor
from vhostpci_host.daemon.daemon import Daemon
from vhostpci_host.daemon.events import EVENTS
from vhostpci_host.daemon.monitor import Monitor, Subscription, Unread


class Scene:
    """A daemon in this process's loop, and those who subscribe at its socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemon = Daemon({})

    async def add(self, name: str, confined: int | None = None) -> None:
        config = DeviceConfig(
            name=name,
            mode=Mode.ARENA,
            memory=16 * MIB if confined is None else 1024 * MIB,
            confined=confined,
            run_dir=self.directory,
            memory_dir=self.directory,
        )
        await self.daemon.add(config)

    @asynccontextmanager
    async def subscriber(self, **request: str) -> AsyncIterator["Reader"]:
        path = str(self.directory / "control")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(json.dumps({"command": "monitor", **request}).encode() + b"\n")
        try:
            yield Reader(reader)
        finally:
            writer.close()
            await writer.wait_closed()


class Reader:
    """What a subscriber reads."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def next(self) -> dict[str, Any]:
        """Return the next line."""
        line: dict[str, Any] = json.loads(await self._stream.readline())
        return line

    async def present(self) -> list[str]:
        """Read the answer and the present state; return the devices."""
        assert (await self.next())["ok"]
        found = []
        while (event := await self.next())["event"] != "listening":
            assert (
                tuple(event)[-len(EVENTS[event["event"]]) :] == EVENTS[event["event"]]
            )
            found += [event["device"]] if event["event"] == "present" else []
        return found

    async def names(self, count: int) -> list[str]:
        return [(await self.next())["event"] for _ in range(count)]

    async def ended(self) -> bool:
        return not await self._stream.read()


Play = Callable[[Scene], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Play], None]:
    """Run a test's part in the loop of a daemon that is closed after it."""
    return player(Scene, tmp_path)


def test_subscriber_learns_what_is_there_and_what_comes_and_goes(
    play: Callable[[Play], None],
) -> None:
    async def part(scene: Scene) -> None:
        await scene.add("a")
        async with scene.subscriber() as reader, scene.subscriber(name="a") as other:
            assert await reader.present() == ["a"]
            assert await other.present() == ["a"]
            await scene.add("b", confined=16 * MIB)
            added = await reader.next()
            assert (added["event"], added["device"]) == ("device-added", "b")
            assert added["state"] == "no master"
            assert added["confined"]["shared"] == 32 * MIB
            await scene.daemon.remove("a")
            await scene.daemon.remove("b")
            gone = [await reader.next() for _ in "ab"]
            assert {one["event"] for one in gone} == {"device-removed"}
            assert sorted(one["device"] for one in gone) == ["a", "b"]
            assert (await other.next())["device"] == "a"

    play(part)


def test_front_end_that_comes_and_goes_at_once_is_not_left_out(
    play: Callable[[Play], None],
) -> None:
    async def part(scene: Scene) -> None:
        await scene.add("a")
        async with scene.subscriber() as reader:
            await reader.present()
            with socket.socket(socket.AF_UNIX) as master:
                master.connect(str(scene.directory / "a.vhost-user"))
            names = await reader.names(4)
        assert [name for name in names if name != "state"] == [
            *("master-connected", "master-disconnected")
        ]

    play(part)


def test_subscriber_is_told_that_the_daemon_ends(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.daemon.serve_control(tmp_path)
        await scene.daemon.restore([])
        async with scene.subscriber() as reader:
            await reader.present()
            await scene.daemon.close()
            assert await reader.names(1) == ["daemon-ends"]
            assert await reader.ended()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT))


def test_last_event_is_written_before_the_loop_ends(tmp_path: Path) -> None:
    """The loop does not turn once more when the daemon is closed."""

    async def run(silent: bool) -> None:
        scene = Scene(tmp_path)
        scene.daemon.serve_control(tmp_path)
        await scene.daemon.restore([])
        subscriber.connect(str(tmp_path / "control"))
        subscriber.sendall(b'{"command": "monitor"}\n')
        ours = scene.daemon._monitor._subscriptions
        await until(lambda: bool(ours))
        if silent:
            # More than the socket's buffer and the writer's take.
            ours[0].push(b"x" * (1 << 20), bounded=False)
        await scene.daemon.close()

    for silent in (False, True):
        with socket.socket(socket.AF_UNIX) as subscriber:
            asyncio.run(asyncio.wait_for(run(silent), TIMEOUT))
            subscriber.settimeout(TIMEOUT)
            with subscriber.makefile() as lines:
                last = list(lines)[-1]
        assert ("daemon-ends" in last) == (not silent)


def test_subscription_ends_with_its_connection(play: Callable[[Play], None]) -> None:
    async def part(scene: Scene) -> None:
        subscriptions = scene.daemon._monitor._subscriptions
        async with scene.subscriber() as reader:
            await reader.present()
            assert len(subscriptions) == 1
        await until(lambda: not subscriptions)

    play(part)


def test_device_that_is_not_there_has_no_events(play: Callable[[Play], None]) -> None:
    async def part(scene: Scene) -> None:
        async with scene.subscriber(name="x") as reader:
            assert "no device 'x'" in (await reader.next())["error"]

    play(part)


def test_subscriber_that_does_not_read_loses_its_connection(
    play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "MOST", 4096)

    async def part(scene: Scene) -> None:
        ours = scene.daemon._monitor
        with closing(socket.socket(socket.AF_UNIX)) as silent:
            silent.connect(str(scene.directory / "control"))
            silent.sendall(b'{"command": "monitor"}\n')
            await until(lambda: bool(ours._subscriptions))
            # More than the socket's buffer takes.
            with monkeypatch.context() as patched:
                # Only here: a request must come in that time as well.
                patched.setattr(control, "LINE_TIMEOUT", 0.2)
                for _ in range(2000):
                    for one in ours._subscriptions:
                        one.push(b"x" * 2000)
                    await asyncio.sleep(0)
                    if not ours._subscriptions:
                        break
                await until(lambda: not ours._subscriptions)
        assert (await asyncio.wait_for(_list(scene), TIMEOUT)) == []

    play(part)


async def _list(scene: Scene) -> Any:
    reader, writer = await asyncio.open_unix_connection(
        str(scene.directory / "control")
    )
    writer.write(b'{"command": "list"}\n')
    found = json.loads(await reader.readline())["result"]
    writer.close()
    await writer.wait_closed()
    return found


def test_memory_for_one_subscriber_is_bounded() -> None:
    async def run() -> None:
        one = Subscription(None, lambda _: None)
        one.push(b"p" * (2 * monitor.MOST), bounded=False)
        one.push(b"x" * monitor.MOST)
        assert len(await one.take()) == 3 * monitor.MOST
        for _ in range(10):
            one.push(b"x" * monitor.MOST)
        assert one._lines == []
        with pytest.raises(Unread):
            await one.take()

    asyncio.run(run())


def test_nothing_is_looked_at_without_a_subscriber() -> None:
    def entries() -> Any:
        raise AssertionError("the devices are looked at")

    Monitor(entries).look()


def test_counters_are_cleared_for_all_who_ask(play: Callable[[Play], None]) -> None:
    async def part(scene: Scene) -> None:
        await scene.add("a")
        path = str(scene.directory / "control")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"command": "clear", "name": "a"}\n')
        writer.write(b'{"command": "status", "name": "a"}\n')
        assert json.loads(await reader.readline()) == {"ok": True, "result": None}
        found = json.loads(await reader.readline())["result"]["cleared"]
        assert len(found["rings"]) == 2
        writer.close()
        await writer.wait_closed()

    play(part)
