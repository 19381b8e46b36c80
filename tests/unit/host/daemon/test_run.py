# SPDX-License-Identifier: Apache-2.0
"""What comes to a daemon while it goes on with the devices of an earlier one."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import TIMEOUT, until
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.config.file import load
from vhostpci_host.daemon import run as run_module
from vhostpci_host.daemon.daemon import Daemon
from vhostpci_host.daemon.pluggers import Pluggers


class Start:
    """A daemon of a file, which goes on with devices when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.restored = asyncio.Event()
        """The test sets it: the devices of an earlier daemon go on."""
        self.unplugged = asyncio.Event()
        """And what is left of those that do not is unplugged."""
        self.write("a", "b")

    def write(self, *names: str) -> None:
        (self.directory / "vms.toml").write_text(
            f'run-dir = "{self.directory}"\nmemory-dir = "{self.directory}"\n'
            + "".join(f'[device.{name}]\nmemory = "16M"\n' for name in names)
        )

    def ask(self, **request: Any) -> asyncio.Task[Any]:
        """Return the answer to a request, when it comes."""
        return asyncio.create_task(self._ask(json.dumps(request).encode() + b"\n"))

    async def _ask(self, line: bytes) -> Any:
        path = str(self.directory / "control")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        answer = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return answer


Play = Callable[[Start], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], None]:
    """Run a test's part beside a daemon that is ended after it."""

    async def run(part: Play) -> None:
        start = Start(tmp_path)
        daemons: list[Daemon] = []
        go_on = Daemon.restore

        async def restore(self: Daemon, configs: Iterable[DeviceConfig]) -> None:
            daemons.append(self)
            await start.restored.wait()
            await go_on(self, configs)

        async def wait(_: Pluggers) -> None:
            await start.unplugged.wait()

        monkeypatch.setattr(Daemon, "restore", restore)
        monkeypatch.setattr(Pluggers, "wait", wait)
        running = asyncio.create_task(run_module.run_file(load(tmp_path / "vms.toml")))
        try:
            await until(lambda: daemons)
            await part(start)
        finally:
            start.restored.set()
            start.unplugged.set()
            daemons[0].stop()
            await running

    return lambda part: asyncio.run(asyncio.wait_for(run(part), TIMEOUT))


def test_requests_wait_until_the_devices_are_there(
    play: Callable[[Play], None],
) -> None:
    """But for the one that asks who serves."""

    async def part(start: Start) -> None:
        listed = start.ask(command="list")
        reloaded = start.ask(command="reload")
        added = start.ask(command="add", name="a", options={"memory": "32M"})
        assert (await start.ask(command="pid"))["result"] == os.getpid()
        # Each of them is read by now.
        assert not any(one.done() for one in (listed, reloaded, added))
        start.restored.set()
        assert (await listed)["ok"]
        assert not any(one.done() for one in (reloaded, added))
        start.unplugged.set()
        assert (await reloaded)["result"]["added"] == []
        assert "device 'a' is there already" in (await added)["error"]
        found = (await start.ask(command="list"))["result"]
        assert [one["name"] for one in found] == ["a", "b"]

    play(part)


def test_hangup_that_comes_early_has_the_file_read_again(
    play: Callable[[Play], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def part(start: Start) -> None:
        start.write("a", "b", "c")
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await start.ask(command="pid")
        start.restored.set()
        start.unplugged.set()
        await until(lambda: "1 added, 0 changed, 0 removed" in caplog.text)
        found = (await start.ask(command="list"))["result"]
        assert [one["name"] for one in found] == ["a", "b", "c"]
        assert "not reloaded" not in caplog.text

    play(part)
