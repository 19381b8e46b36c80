# SPDX-License-Identifier: Apache-2.0
"""Hot-plug with a real QEMU, in whose guest nothing but firmware runs.

test: one event loop ──unix sockets──► QEMU: SeaBIOS, two ports, no disk
      QmpVm, window sockets  ◄──QMP───
"""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.assumptions import qtest
from tests.vm import qemu
from tests.vm.qmp import Qmp
from tests.waiting import PROCESS_TIMEOUT, until, wait_for
from vhostpci_host.daemon.listeners import PathListener, Place
from vhostpci_host.fds import Fd
from vhostpci_host.hotplug import qmp_vm
from vhostpci_host.hotplug.qmp_vm import QmpVm
from vhostpci_host.hotplug.reconciler import Reconciler
from vhostpci_host.hotplug.vm import PlugError, VmAway
from vhostpci_host.interfaces import Plug
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.ivshmem.window_socket import WindowSocket
from vhostpci_host.memory.regions import WindowFile

pytestmark = pytest.mark.vm

MIB, GIB = 2**20, 2**30
# With 40 address bits, newer firmware puts root ports among addresses that QEMU
# reserves (see the daemon's hotplug/pci_ports.py).
PORTS = [
    *("-global", "x86_64-cpu.phys-bits=39"),
    *("-device", "pcie-root-port,id=large,chassis=1,slot=1,pref64-reserve=1G"),
    *("-device", "pcie-root-port,id=small,chassis=2,slot=2"),
]


@contextmanager
def started(directory: Path, *args: str, machine: str = "q35") -> Iterator[int]:
    """Start a QEMU with two QMP sockets: ours, and the test's; yield its pid."""
    command = [
        *(qemu.binary(), "-M", machine, "-accel", "tcg", "-m", "128M"),
        *("-nodefaults", "-display", "none"),
        *("-qmp", f"unix:{directory}/ours,server=on,wait=off"),
        *("-qmp", f"unix:{directory}/test,server=on,wait=off"),
        *args,
    ]
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.kill()


class Shown:
    """The daemon's window sockets, served by this event loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._undo = ExitStack()
        self._linger = Linger(asyncio.get_running_loop())
        self._shown: dict[int, WindowSocket] = {}
        self.said: list[str] = []
        self.held: list[Callable[[], None]] = []
        """Handshakes for which a QEMU waits."""

    def show(self, window: int, size: int) -> Plug:
        """Serve another window, as the daemon does."""
        path = self._directory / f"window.{window}"
        memory = Fd(qtest.memory(size))
        self._undo.callback(memory.close)
        file = WindowFile(memory, size, (0, window, size))
        self._shown[window] = WindowSocket(
            window,
            file,
            path,
            self._listen,
            loop=asyncio.get_running_loop(),
            linger=self._linger,
            say_once=self.said.append,
        )
        return Plug(window=window, socket=path, vectors=1, size=size)

    def hide(self, window: int) -> None:
        """Stop serving a window."""
        self._shown.pop(window).close()

    def greet(self, window: int, *, vectors: int = 1, hold: bool = False) -> Plug:
        """Send a handshake to each client of a window's socket.

        With `hold` it waits in `held` until the test calls it.
        """
        path = self._directory / f"window.{window}"
        memory = qtest.memory(MIB)
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(vectors)]
        for fd in (memory, *fds):
            self._undo.callback(os.close, fd)

        def take(connection: socket.socket) -> None:
            server = self._undo.enter_context(qtest.Server(connection))
            hello = partial(server.hello, window, memory, fds)
            if hold:
                self.held.append(hello)
            else:
                hello()

        self._undo.callback(self._listen(path, take).close)
        return Plug(window=window, socket=path, vectors=vectors, size=MIB)

    def _listen(
        self, path: Path, take: Callable[[socket.socket], None]
    ) -> PathListener:
        loop = asyncio.get_running_loop()
        return PathListener(Place(path, 0o600, None), loop, take, self.said.append)

    def close(self) -> None:
        """Stop serving all windows."""
        for window in list(self._shown):
            self.hide(window)
        self._undo.close()
        self._linger.close()


@asynccontextmanager
async def way_to(directory: Path) -> AsyncIterator[tuple[QmpVm, Shown]]:
    """Connect to the QEMU's monitor, and wait until it answers."""
    vm, shown = QmpVm(directory / "ours"), Shown(directory)
    try:
        await until_done(lambda: vm.plugged("web"))
        yield vm, shown
    finally:
        await vm.close()
        shown.close()


async def plug_until_done(vm: QmpVm, device: str, plug: Plug) -> None:
    """Plug a window; try again while QEMU refuses, since firmware has not run yet."""
    await until_done(lambda: vm.plug(device, plug))


async def until_done(work: Callable[[], Awaitable[Any]]) -> None:
    """Call `work` until it raises no PlugError: firmware needs seconds to start."""
    deadline = time.monotonic() + PROCESS_TIMEOUT
    while True:
        try:
            await work()
        except PlugError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        else:
            return


async def firmware_has_run(directory: Path) -> None:
    """Return once firmware has given all root ports their addresses.

    Beside other load that takes half a minute, and a reconciler that begins before it
    pauses for up to ten seconds between its attempts.
    """

    def ranges() -> list[tuple[int, int]]:
        with Qmp(directory / "test") as monitor:
            (bus,) = monitor.execute("query-pci", {})
        bridges = [d["pci_bridge"] for d in bus["devices"] if "pci_bridge" in d]
        found = [bridge["bus"]["prefetchable_range"] for bridge in bridges]
        return [(one["base"], one["limit"]) for one in found]

    await asyncio.to_thread(
        wait_for, lambda: all(base < limit for base, limit in ranges()), ranges
    )


def reset(directory: Path) -> None:
    """Reset the VM: QEMU then removes a device that the guest has not released."""
    with Qmp(directory / "test") as monitor:
        monitor.execute("system_reset", {})


def behind(directory: Path, port: str) -> dict[str, int]:
    """Return the devices behind a root port, with the size of their BAR 2."""
    with Qmp(directory / "test") as monitor:
        (bus,) = monitor.execute("query-pci", {})
    (bridge,) = (d for d in bus["devices"] if d["qdev_id"] == port)
    return {
        device["qdev_id"]: region["size"]
        for device in bridge["pci_bridge"]["devices"]
        for region in device["regions"]
        if region["bar"] == 2
    }


def test_loop_that_plugs_also_answers_the_handshakes(tmp_path: Path) -> None:
    """So one daemon, with one loop, cannot deadlock with QEMU's main loop."""

    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            wanted = frozenset({shown.show(0, 64 * 1024), shown.show(300, GIB)})
            await firmware_has_run(tmp_path)
            plugger = Reconciler("web", "slave", vm, vm.close)
            plugger.want(wanted)
            await until(lambda: plugger.status()["plugged"] == [0, 300])
            assert behind(tmp_path, "large") == {"vhostpci.300.web-window": GIB}
            assert behind(tmp_path, "small") == {"vhostpci-web-window": 64 * 1024}
            await plugger.close()

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_late_handshake_blocks_qemu_and_not_the_daemon(
    tmp_path: Path,
) -> None:
    """QEMU reads it in device_add, in its main loop; our event loop runs meanwhile."""

    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await plug_until_done(vm, "other", shown.greet(0))
            plug = asyncio.create_task(vm.plug("web", shown.greet(300, hold=True)))
            await until(lambda: shown.held)
            await asyncio.sleep(1)
            assert not plug.done()
            shown.held.pop()()
            await plug
            assert await vm.plugged("web") == {300}

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_handshake_that_refuses_leaves_qemu_alive_and_nothing_behind(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await plug_until_done(vm, "other", shown.show(300, MIB))
            with pytest.raises(PlugError, match="server sent version"):
                await vm.plug("web", shown_to_another)
            assert await vm.plugged("web") == set()
            assert await vm.plugged("other") == {300}

    shown_to_another = Plug(
        window=300, socket=tmp_path / "window.300", vectors=1, size=MIB
    )
    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_window_socket_that_closes_during_the_plug_leaves_qemu_alive(
    tmp_path: Path,
) -> None:
    """QEMU would hang if the connection closed between chardev-add and device_add."""

    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            plug = shown.show(300, MIB)
            with Qmp(tmp_path / "test") as monitor:
                address = {"type": "unix", "data": {"path": str(plug.socket)}}
                backend = {"type": "socket", "data": {"addr": address, "server": False}}
                add = {"id": "early", "backend": backend}
                await asyncio.to_thread(monitor.execute, "chardev-add", add)
                await asyncio.sleep(0.2)
                shown.hide(300)
                await asyncio.sleep(0.2)
                device = {"driver": "ivshmem-doorbell", "chardev": "early"}
                device |= {"bus": "small", "id": "early-window"}
                await asyncio.to_thread(monitor.execute, "device_add", device)
            assert await vm.plugged("web") == set()

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_port_that_is_large_enough_is_taken_only_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await plug_until_done(vm, "web", shown.show(300, GIB))
            with pytest.raises(PlugError, match="no free root port for the 1G"):
                await vm.plug("web", shown.show(301, GIB))

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_unplugged_window_leaves_nothing_and_its_port_is_free(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            plug = shown.show(300, GIB)
            await plug_until_done(vm, "web", plug)
            unplug = asyncio.create_task(vm.unplug("web", 300))
            await asyncio.sleep(0.5)
            assert not unplug.done()
            reset(tmp_path)
            await unplug
            assert await vm.plugged("web") == set()
            await plug_until_done(vm, "web", plug)

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_unplugged_vectors_do_not_keep_qemu_busy(tmp_path: Path) -> None:
    """Without KVM: see tcg_eventfds.py."""

    async def scenario(pid: int) -> None:
        async with way_to(tmp_path) as (vm, shown):
            plug = shown.greet(0, vectors=65)
            await plug_until_done(vm, "web", plug)
            unplug = asyncio.create_task(vm.unplug("web", 0))
            await asyncio.sleep(0.5)
            with Qmp(tmp_path / "test") as monitor:
                monitor.execute("system_reset", {})
                monitor.execute("stop", {})
            await unplug
            before = cpu_seconds(pid)
            await asyncio.sleep(1)
            assert cpu_seconds(pid) - before < 0.1

    with started(tmp_path, *PORTS) as pid:
        asyncio.run(scenario(pid))


def cpu_seconds(pid: int) -> float:
    """Return what a process has used of the CPU (proc(5), stat)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_window_is_unassigned_until_firmware_gives_it_an_address(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await plug_until_done(vm, "web", shown.show(300, GIB))
            assert await vm.unassigned("web") == {300: ""}
            reset(tmp_path)
            async with asyncio.timeout(PROCESS_TIMEOUT):
                while await vm.unassigned("web"):
                    await asyncio.sleep(0.1)

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_ports_have_no_room_before_firmware_has_run(tmp_path: Path) -> None:
    """So the daemon waits for it: QEMU would accept a device that gets no address."""

    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            with pytest.raises(PlugError, match="firmware"):
                await vm.plug("web", shown.show(0, 64 * 1024))

    with started(tmp_path, *PORTS, "-S"):
        asyncio.run(scenario())


def test_i440fx_takes_a_window_on_its_one_bus(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await vm.plug("web", shown.show(300, GIB))
            assert await vm.plugged("web") == {300}

    with started(tmp_path, machine="pc"):
        asyncio.run(scenario())


def test_second_client_of_a_monitor_is_never_greeted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the devices of a daemon share one connection, and the wait has a limit."""
    monkeypatch.setattr("vhostpci_host.hotplug.qmp_monitor.GREETING_TIME", 1)

    async def scenario() -> None:
        async with way_to(tmp_path):
            second = QmpVm(tmp_path / "ours")
            with pytest.raises(VmAway, match="serves one client at a time"):
                await second.plugged("web")
            await second.close()

    with started(tmp_path):
        asyncio.run(scenario())


def test_next_daemon_finds_the_windows_that_the_last_one_plugged(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await plug_until_done(vm, "web", shown.show(300, MIB))
            await vm.close()
        async with way_to(tmp_path) as (vm, shown):
            assert await vm.plugged("web") == {300}

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())


def test_guest_without_a_driver_does_not_release_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU refuses a second request while it waits: that is not another error."""
    monkeypatch.setattr(qmp_vm, "GUEST_TIME", 0.5)

    async def scenario() -> None:
        async with way_to(tmp_path) as (vm, shown):
            await plug_until_done(vm, "web", shown.show(300, MIB))
            for _ in range(2):
                with pytest.raises(PlugError, match="does not release"):
                    await vm.unplug("web", 300)

    with started(tmp_path, *PORTS):
        asyncio.run(scenario())
