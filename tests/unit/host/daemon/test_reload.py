# SPDX-License-Identifier: Apache-2.0
"""A configuration file that is read again: what changes, and what must not."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.windows import MIB
from tests.waiting import TIMEOUT, until
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.config.file import load
from vhostpci_host.daemon.daemon import Daemon
from vhostpci_host.daemon.pluggers import Pluggers
from vhostpci_host.daemon.reload import AGAIN, compare
from vhostpci_host.errors import FileError, HostError

A = DeviceConfig(name="a", memory=MIB)
B = replace(A, name="b")
C = replace(A, name="c")


def served(*devices: DeviceConfig) -> dict[str, DeviceConfig]:
    return {device.name: device for device in devices}


def test_only_what_differs_changes() -> None:
    other = replace(B, queue_pairs=2)
    changes = compare(served(A, B), set(), {"a", "b"}, [A, other, C])
    assert (changes.added, changes.changed, changes.removed) == (("c",), ("b",), ())
    assert str(changes) == "1 added, 1 changed, 0 removed"
    changes = compare(served(A, B), set(), {"a", "b"}, [B])
    assert (changes.added, changes.changed, changes.removed) == ((), (), ("a",))


def test_device_that_was_added_by_hand_stays() -> None:
    assert compare(served(A, B), set(), {"a"}, [A]).removed == ()
    # Once the file names it, it is the file's.
    assert compare(served(A, B), set(), {"a"}, [A, B]).started == set()


def test_device_that_failed_is_tried_again() -> None:
    changes = compare(served(A, B), {"b"}, {"a", "b"}, [A, B])
    assert changes.started == {"b"}
    answer = changes.describe({"b": "why", "x": "not this time"})
    assert answer["failed"] == {"b": "why"}


def test_path_of_a_device_that_stays_is_not_taken() -> None:
    thief = replace(C, socket_path=B.vhost_user)
    with pytest.raises(HostError, match=r"c: its vhost-user socket .* of b too"):
        compare(served(A, B), set(), {"a"}, [A, thief])


class Scene:
    """A daemon with a file, in this process's loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "vms.toml"
        self.daemon = Daemon({})
        self.write("a", "b")

    def write(self, *names: str, more: str = "", memory: str = "16M") -> None:
        self._path.write_text(
            f'run-dir = "{self.directory}"\nmemory-dir = "{self.directory}"\n'
            + "".join(f'[device.{name}]\nmemory = "{memory}"\n' for name in names)
            + more
        )

    async def start(self) -> None:
        file = load(self._path)
        self.daemon.begin_file(file)
        await self.daemon.serve_file(file)

    async def reload(self) -> Any:
        return await self.daemon.requests.reload({})


Play = Callable[[Scene], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Play], None]:
    async def run(part: Play) -> None:
        scene = Scene(tmp_path)
        try:
            await scene.start()
            await part(scene)
        finally:
            await scene.daemon.close()

    return lambda part: asyncio.run(asyncio.wait_for(run(part), TIMEOUT))


def test_mistake_in_the_file_changes_nothing(play: Callable[[Play], None]) -> None:
    async def part(scene: Scene) -> None:
        scene.write("c", more="nonsense = 1\n")
        with pytest.raises(FileError, match="nonsense: there is no such option"):
            await scene.reload()
        assert scene.daemon.configs().keys() == {"a", "b"}
        scene.write("c")
        assert (await scene.reload())["added"] == ["c"]
        assert scene.daemon.configs().keys() == {"c"}

    play(part)


def test_device_that_cannot_be_served_is_named_and_tried_again(
    play: Callable[[Play], None],
) -> None:
    async def part(scene: Scene) -> None:
        blocker = scene.directory / "c.ivshmem"
        blocker.mkdir()
        scene.write("a", "b", "c")
        answer = await scene.reload()
        assert answer["added"] == ["c"]
        assert "c.ivshmem is there and is no socket" in answer["failed"]["c"]
        blocker.rmdir()
        answer = await scene.reload()
        assert (answer["changed"], answer["failed"]) == (["c"], {})

    play(part)


def test_run_directory_stays(play: Callable[[Play], None]) -> None:
    async def part(scene: Scene) -> None:
        (scene.directory / "vms.toml").write_text('run-dir = "/elsewhere"\n')
        with pytest.raises(HostError, match="run-dir /elsewhere: the daemon serves"):
            await scene.reload()
        assert scene.daemon.configs().keys() == {"a", "b"}

    play(part)


def test_defaults_of_devices_that_are_added_later_follow_the_file(
    play: Callable[[Play], None],
) -> None:
    async def part(scene: Scene) -> None:
        scene.daemon.serve_control(scene.directory)
        text = (scene.directory / "vms.toml").read_text()
        (scene.directory / "vms.toml").write_text(f'socket-mode = "0666"\n{text}')
        assert (await scene.reload())["changed"] == ["a", "b"]
        options = {"mode": "attach"}
        await scene.daemon.requests.add({"name": "c", "options": options})
        assert scene.daemon.configs()["c"].access == 0o666

    play(part)


def test_nothing_else_is_changed_meanwhile(
    play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def part(scene: Scene) -> None:
        begun, end = asyncio.Event(), asyncio.Event()

        async def wait(self: Pluggers, name: str) -> None:
            begun.set()
            await end.wait()

        scene.write("a")
        with monkeypatch.context() as patched:
            patched.setattr(Pluggers, "unplug", wait)
            reloading = asyncio.create_task(scene.reload())
            await begun.wait()
            for request in (
                scene.reload(),
                scene.daemon.requests.remove({"name": "a"}),
            ):
                with pytest.raises(HostError, match="reloading its file: try again"):
                    await request
            end.set()
            assert (await reloading)["removed"] == ["b"]
        assert await scene.reload() == {
            "added": [],
            "changed": [],
            "removed": [],
            "failed": {},
        }

    play(part)


Begin = Callable[[Scene], Awaitable[object]]


async def hang_up(_: Scene) -> None:
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(Scene.reload, id="the file is read"),
        pytest.param(hang_up, id="the file is read because of a signal"),
        pytest.param(
            lambda scene: scene.daemon.requests.remove({"name": "b"}),
            id="a device is removed",
        ),
    ],
)
def test_signal_has_the_file_read_when_what_is_under_way_has_ended(
    play: Callable[[Play], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Begin,
) -> None:
    caplog.set_level("INFO")

    async def part(scene: Scene) -> None:
        begun, end = asyncio.Event(), asyncio.Event()

        async def wait(self: Pluggers, name: str) -> None:
            begun.set()
            await end.wait()

        monkeypatch.setattr(Pluggers, "unplug", wait)
        scene.write("a")
        changing = asyncio.ensure_future(change(scene))
        await begun.wait()
        scene.write("a", "c")
        for _ in range(2):
            await hang_up(scene)
        await asyncio.sleep(3 * AGAIN)
        assert scene.daemon.configs().keys() == {"a", "b"}
        end.set()
        await changing
        await until(lambda: scene.daemon.configs().keys() == {"a", "c"})
        assert "not reloaded" not in caplog.text
        assert caplog.text.count("SIGHUP waits: ") <= 1

    play(part)


def test_daemon_that_ends_meanwhile_serves_nothing_new(
    play: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def part(scene: Scene) -> None:
        async def stop(self: Pluggers, name: str) -> None:
            scene.daemon.stop()

        scene.write("a", "c")
        with monkeypatch.context() as patched:
            patched.setattr(Pluggers, "unplug", stop)
            await scene.reload()
        assert scene.daemon.configs().keys() == {"a"}
        with pytest.raises(HostError, match="the daemon is ending"):
            await scene.reload()

    play(part)
