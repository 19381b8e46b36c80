# SPDX-License-Identifier: Apache-2.0
"""A slave VM that is asked over QMP.

To plug a window is `chardev-add`, which connects QEMU to the window's socket, and then
`device_add`, in which QEMU reads the ivshmem handshake while its main loop stands
still.  That cannot deadlock: the daemon's event loop serves the sockets while this code
awaits QMP's answer, and serving them never waits for QMP.  QEMU hardly waits either:
the daemon sends the handshake when the chardev connects, before `device_add` is sent.

To unplug a window is `device_del`, which only asks the guest; the event DEVICE_DELETED
comes when the guest has released the device.  Then the chardev can be removed.
"""

import asyncio
import contextlib
from pathlib import Path

from ..interfaces import Plug
from . import root_ports
from .ids import DEVICE, object_id, reasons_of, windows_of
from .qmp_monitor import Monitor, Refused
from .tcg_eventfds import TcgEventfds
from .vm import PlugError, understood

GUEST_TIME = 10.0
"""Seconds that a guest has to release a device, before `unplug` fails."""

_PERIPHERAL = "/machine/peripheral"
_ALREADY = "already in the process of unplug"


class QmpVm:
    """A QEMU with a QMP socket (a `SlaveVm`); devices share the connection."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._vm = f"the slave VM at {path}"
        self._monitor: Monitor | None = None
        self._opening: asyncio.Task[Monitor] | None = None
        self._plugging = asyncio.Lock()
        self._tcg_eventfds = TcgEventfds()

    async def plugged(self, device: str) -> set[int]:
        """Return the windows of which the VM has the chardev, the device or both."""
        monitor = await self._connected()
        names = [
            *await self._chardevs(monitor),
            *(
                name.removesuffix(DEVICE)
                for name in await self._devices(monitor)
                if name.endswith(DEVICE)
            ),
        ]
        return windows_of(device, names)

    async def plug(self, device: str, plug: Plug) -> None:
        """Plug one window, where it fits best; roll back if QEMU refuses."""
        monitor = await self._connected()
        # One plug at a time: two of them would choose the same free root port.
        async with self._plugging:
            # An unplug that was cancelled or failed may have left eventfds watched.
            await self._clear(monitor)
            place = await self._place(monitor, plug)
            name = object_id(device, plug.window)
            # The chardev first: it connects to the window's socket, where the daemon
            # answers with the handshake that device_add reads.
            await self._add_chardev(monitor, name, plug.socket)
            try:
                await monitor.execute(
                    "device_add",
                    driver="ivshmem-doorbell",
                    id=name + DEVICE,
                    chardev=name,
                    vectors=plug.vectors,
                    **place,
                )
            except Refused:
                # A chardev that is left would hold the window's socket connected.
                with contextlib.suppress(PlugError):
                    await monitor.execute("chardev-remove", id=name)
                raise

    async def _add_chardev(self, monitor: Monitor, name: str, path: Path) -> None:
        # No reconnect: with it QEMU 7.2 connects in the background, and an ivshmem
        # device on such a chardev spins without end in its wait for the handshake.
        address = {"type": "unix", "data": {"path": str(path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        try:
            await monitor.execute("chardev-add", id=name, backend=backend)
        except Refused as error:
            # QMP has no error code for this: only QEMU's text tells it.
            if "Permission denied" not in error.reason:
                raise
            raise PlugError(
                f"{error}: let the user that this QEMU runs as connect, with "
                "--socket-group or --socket-mode",
                code="H105",
            ) from error

    async def unplug(self, device: str, window: int) -> None:
        """Unplug one window; return when the guest has released it and it is gone."""
        monitor = await self._connected()
        name = object_id(device, window)
        if name + DEVICE in await self._devices(monitor):
            with understood(self._vm, "query-kvm"):
                leaves = await self._tcg_eventfds.expect(monitor, name + DEVICE)
            if leaves:
                # Plug nothing before the stale eventfds are cleared: see tcg_eventfds.
                async with self._plugging:
                    await self._eject(monitor, name + DEVICE)
                    await self._clear(monitor)
            else:
                await self._eject(monitor, name + DEVICE)
        # Only now: QEMU refuses to remove a chardev that a device uses.
        if name in await self._chardevs(monitor):
            await monitor.execute("chardev-remove", id=name)

    async def _clear(self, monitor: Monitor) -> None:
        await self._tcg_eventfds.clear(monitor, set(await self._devices(monitor)))

    async def unassigned(self, device: str) -> dict[int, str]:
        """Return the plugged windows that have no address in the guest, and why."""
        answer = await (await self._connected()).execute("query-pci")
        with understood(self._vm, "query-pci"):
            without = root_ports.unassigned(answer)
        names = {name.removesuffix(DEVICE): why for name, why in without.items()}
        return reasons_of(device, names)

    async def gone(self) -> None:
        """Return when the VM that was asked last has ended; at once if none is."""
        if self._monitor is not None:
            await self._monitor.wait_closed()

    async def close(self) -> None:
        """Close the connection; what is plugged stays plugged."""
        # First the attempt to connect, which would set `_monitor` when it succeeds.
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._monitor is not None:
            await self._monitor.close()

    async def _connected(self) -> Monitor:
        """Return the open connection, or open one; all callers share it."""
        if self._monitor is not None and not self._monitor.closed:
            return self._monitor
        if self._opening is None:
            self._opening = asyncio.create_task(Monitor.open(self._path))
            # The first callback of the task: it has set `_monitor` before any caller of
            # this method goes on.
            self._opening.add_done_callback(self._opened)
        # A caller that is cancelled must not cancel it for the others.
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[Monitor]) -> None:
        self._opening = None
        if not task.cancelled() and task.exception() is None:
            self._monitor = task.result()

    async def _devices(self, monitor: Monitor) -> dict[str, str]:
        """Return the types of the VM's devices, by ID."""
        answer = await monitor.execute("qom-list", path=_PERIPHERAL)
        with understood(self._vm, "qom-list"):
            return {
                child["name"]: child["type"].removeprefix("child<").removesuffix(">")
                for child in answer
            }

    async def _chardevs(self, monitor: Monitor) -> set[str]:
        answer = await monitor.execute("query-chardev")
        with understood(self._vm, "query-chardev"):
            return {chardev["label"] for chardev in answer}

    async def _place(self, monitor: Monitor, plug: Plug) -> dict[str, object]:
        """Return the arguments of `device_add` that say where to plug a window."""
        types = await self._devices(monitor)
        answer = await monitor.execute("query-pci")
        with understood(self._vm, "query-pci"):
            ports = root_ports.find(answer, types)
        for port in root_ports.best(ports, plug.size):
            if await self._takes(monitor, port.name):
                return {"bus": port.name}
        # Without `bus` QEMU takes the first bus that it finds: on q35 the root bus,
        # which has no hot-plug.  i440fx has no root ports: QEMU finds a free slot of
        # its one bus.
        machine = await monitor.execute("qom-get", path="/machine", property="type")
        if "i440fx" in str(machine):
            return {}
        raise self._no_place(ports, plug)

    async def _takes(self, monitor: Monitor, port: str) -> bool:
        """Whether devices may be plugged into a root port (its property `hotplug`)."""
        path = f"{_PERIPHERAL}/{port}"
        try:
            return bool(await monitor.execute("qom-get", path=path, property="hotplug"))
        except Refused:
            # ioh3420 has no such property: devices may be plugged into it.
            return True

    def _no_place(self, ports: list[root_ports.RootPort], plug: Plug) -> PlugError:
        if root_ports.unset(ports):
            return PlugError(
                f"the firmware of {self._vm} has not "
                "set up its root ports yet: waiting for it",
                code="H106",
            )
        size, room = (
            root_ports.size_text(plug.size),
            root_ports.size_text(2 * plug.size),
        )
        return PlugError(
            f"{self._vm} has no free root port for the {size} of "
            f"window {plug.window} (free: {root_ports.free_text(ports)}): start it "
            f"with one more -device pcie-root-port,id=vp1,chassis=101,slot=101,"
            f"pref64-reserve={room}, and with other numbers for each further one; it "
            f"is twice the size since it need not begin at a multiple of {size}",
            code="H107",
        )

    async def _eject(self, monitor: Monitor, name: str) -> None:
        """Ask the guest to release a device, and wait until it has.

        Raises:
            PlugError: QEMU refuses, or the guest has not released it in GUEST_TIME.
        """
        # Wait for the event from before the command: it may come before the answer.
        with monitor.unplugged(name) as deleted:
            try:
                await monitor.execute("device_del", id=name)
            except Refused as error:
                if _ALREADY not in error.reason:
                    raise self._fixed(name, error) from error
            try:
                async with asyncio.timeout(GUEST_TIME):
                    if await deleted:
                        return
            except TimeoutError:
                # The event may be lost: look whether the device is still there.
                if name not in await self._devices(monitor):
                    return
        raise PlugError(
            f"the guest of {self._vm} does not release {name}: no "
            "new one is plugged until it has; the guest needs a driver for PCI "
            "hot-plug, and the agent must not be stopped",
            code="H108",
        )

    def _fixed(self, name: str, error: Refused) -> PlugError:
        return PlugError(
            f"{self._vm} cannot unplug {name}: {error.reason}; if "
            "that is on its QEMU's command line, leave it out: the daemon plugs it",
            code="H109",
        )
