# SPDX-License-Identifier: Apache-2.0
"""A slave VM that libvirt manages: the daemon asks it through virsh.

libvirt keeps the QMP socket of its domains for itself.  Each step reads the domain's
live XML, where a window is the `<shmem>` whose name is the window's `object_id`.
"""

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass
from typing import Any, Self
from xml.etree import ElementTree as ET

from ..interfaces import Plug
from . import root_ports, shmem_xml
from .ids import object_id, reasons_of, windows_of
from .tcg_eventfds import TcgEventfds
from .virsh import FILE, Virsh
from .vm import PlugError, VmAway, understood

PLUG_TIME = 20.0
"""Seconds that plugging may take on top of an answer's: QEMU reads the handshake."""
UNPLUG_TIME = 8.0
"""Seconds that the guest has to release a window, before `unplug` fails."""
UNPLUG_LOOK = 0.3
"""Seconds between two looks whether the guest has released a window."""
AWAY_TIME = 0.9
"""Seconds for which the answer that a domain does not run is reused.

Less than the reconciler's pause before it asks again (AWAY_PAUSE), so that each device
gets a new answer at its next attempt.
"""
WATCH_TIME = 10
"""Seconds between two looks at a domain that has no events."""
EVENT_LOOK = 0.5
"""Seconds from an event to the look at the domain."""
PORT = "pcie-root-port"


@dataclass(frozen=True, slots=True)
class Live:
    """A domain that runs, as its XML says."""

    run: str
    """libvirt's number of this run of it; another start has another."""
    windows: dict[str, str]
    """The aliases of all `<shmem>` elements, by their names."""
    ports: dict[str, int]
    """The bus numbers of the root ports that allow hot-plug, by the ports' aliases."""
    express: bool
    """Whether its PCI bus is PCI Express."""
    kvm: bool
    """Whether it has KVM."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what `virsh dumpxml` says; None if the domain does not run."""
        root = ET.fromstring(text)
        # Only a domain that runs has an ID.
        run = root.get("id")
        if run is None:
            return None
        windows = {
            shmem.get("name", ""): _alias(shmem)
            for shmem in root.iterfind("devices/shmem")
        }
        ports = {
            # The index of a controller is the number of the bus behind it, which
            # `<address bus=...>` names.
            _alias(port): int(port.get("index", "0"))
            for port in root.iterfind("devices/controller[@model='pcie-root-port']")
            if port.find("target[@hotplug='off']") is None
        }
        express = root.find("devices/controller[@model='pcie-root']") is not None
        return cls(run, windows, ports, express, root.get("type") == "kvm")


def _alias(device: ET.Element) -> str:
    """Return libvirt's name for a device, which is also its ID in QEMU."""
    alias = device.find("alias")
    return "" if alias is None else alias.get("name", "")


class LibvirtVm:
    """A domain (a `SlaveVm`), running or not.

    Args:
        name: the domain's.
        virsh: how libvirt is asked.
    """

    def __init__(self, name: str, virsh: Virsh | None = None) -> None:
        self._name = name
        self._qemu = f"the QEMU of domain {name!r}"
        self._virsh = virsh or Virsh()
        self._loop = asyncio.get_running_loop()
        # `_turn` is held for one virsh command, so that many devices do not flood
        # libvirt; `_plugging` for a whole plug, so that no two choose one root port.
        self._turn, self._plugging = asyncio.Lock(), asyncio.Lock()
        self._away, self._away_code, self._away_until = "", "", 0.0
        self._run: str | None = None
        self._watch: asyncio.Task[None] | None = None
        self._tcg_eventfds = TcgEventfds()

    async def plugged(self, device: str) -> set[int]:
        """Return which windows of `device` the domain has."""
        return windows_of(device, (await self._live()).windows)

    async def plug(self, device: str, plug: Plug) -> None:
        """Plug one window; if QEMU refuses, libvirt removes the half that it added."""
        async with self._plugging:
            live = await self._live()
            await self._clear(live)
            name = object_id(device, plug.window)
            element = shmem_xml.shmem(name, plug, bus=await self._bus(live, plug))
            try:
                # --live: the domain's persistent XML stays as it is.  After its next
                # start the windows may be others, and the daemon plugs them then.
                await self._ask(
                    *("attach-device", "--file", FILE, "--live"),
                    more_time=PLUG_TIME,
                    file=shmem_xml.text(element),
                )
            except VmAway:
                raise
            except PlugError as error:
                raise PlugError(
                    self._refusal(plug, str(error)), code=error.code
                ) from error

    async def _bus(self, live: Live, plug: Plug) -> int | None:
        """Return the bus to plug a window into; None leaves the choice to libvirt."""
        # i440fx has one bus, and libvirt finds a slot there.  In a q35 domain it would
        # look for a slot of conventional PCI, of which there is none.
        if not live.express:
            return None
        answer = await self._query_pci()
        with understood(self._qemu, "query-pci"):
            # libvirt's alias of a controller is the ID that QEMU knows it by.
            ports = root_ports.find(answer, dict.fromkeys(live.ports, PORT))
        for port in root_ports.best(ports, plug.size):
            return live.ports[port.name]
        raise self._no_place(ports, plug)

    def _no_place(self, ports: list[root_ports.RootPort], plug: Plug) -> PlugError:
        if root_ports.unset(ports):
            return PlugError(
                f"the firmware of domain {self._name!r} has not set up its root ports "
                "yet: waiting for it",
                code="H092",
            )
        room = root_ports.size_text(2 * plug.size)
        return PlugError(
            f"domain {self._name!r} has no free pcie-root-port for the "
            f"{root_ports.size_text(plug.size)} of window {plug.window} (free: "
            f"{root_ports.free_text(ports)}): add one with pref64-reserve={room} to "
            f"its XML (virsh edit {self._name}), as `vhostpci-host xml --role slave` "
            "prints it; then shut the domain down, and start it again",
            code="H093",
        )

    def _refusal(self, plug: Plug, reason: str) -> str:
        advice = ""
        # With or without a capital letter: the text may be QEMU's or libvirt's.
        if "ermission denied" in reason:
            advice = (
                "; let QEMU's user and its AppArmor or SELinux profile reach "
                f"{plug.socket} (--socket-group)"
            )
        return (
            f"libvirt does not plug window {plug.window} into domain {self._name!r}: "
            f"{reason}{advice}"
        )

    async def unplug(self, device: str, window: int) -> None:
        """Unplug one window; return when the guest has released it."""
        name = object_id(device, window)
        live = await self._live()
        if name not in live.windows:
            return
        # With KVM an unplugged window leaves nothing to clear, and several
        # windows may be unplugged at once.
        if live.kvm:
            await self._eject(name, window, live)
            return
        # Plug nothing before the stale eventfds are cleared: see tcg_eventfds.
        async with self._plugging:
            await self._tcg_eventfds.expect(self, live.windows[name])
            await self._eject(name, window, live)
            await self._clear(await self._live())

    async def _clear(self, live: Live) -> None:
        if not live.kvm:
            await self._tcg_eventfds.clear(self, set(live.windows.values()))

    async def _eject(self, name: str, window: int, live: Live) -> None:
        """Ask the guest to release a window, and wait until it has."""
        alias = live.windows[name]
        # By alias: `detach-device` would want the whole element, as libvirt has it now.
        try:
            await self._ask("detach-device-alias", "--alias", alias, "--live")
        except VmAway:
            raise
        except PlugError as error:
            # The guest was asked before and has not answered: go on waiting.
            if "in the process of unplug" not in str(error):
                raise PlugError(
                    f"libvirt does not unplug window {window} of domain "
                    f"{self._name!r}: {error}",
                    code="H094",
                ) from error
        await self._wait_unplugged(name, window)

    async def _wait_unplugged(self, name: str, window: int) -> None:
        # Look rather than wait for the event device-removed: one that comes between two
        # runs of `virsh event` is missed.
        deadline = self._loop.time() + UNPLUG_TIME
        while name in (await self._live()).windows:
            if self._loop.time() > deadline:
                raise PlugError(
                    f"the guest of domain {self._name!r} has not released window "
                    f"{window}: it boots, or has no driver for PCI hot-plug",
                    code="H095",
                )
            await asyncio.sleep(UNPLUG_LOOK)

    async def unassigned(self, device: str) -> dict[int, str]:
        """Return the plugged windows that have no address in the guest, and why."""
        # libvirt's XML has the slot of a device, but not whether its BAR has an
        # address: only QEMU knows.
        windows = (await self._live()).windows
        answer = await self._query_pci()
        with understood(self._qemu, "query-pci"):
            without = root_ports.unassigned(answer)
        names = {
            name: without[alias] for name, alias in windows.items() if alias in without
        }
        return reasons_of(device, names)

    async def _query_pci(self) -> Any:
        return await self.execute("query-pci")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Have QEMU's monitor execute a command.

        libvirt marks the domain as tainted (custom-monitor) in its log.
        """
        return await self._execute(command, arguments)

    async def hand_over(self, name: str, descriptor: socket.socket) -> None:
        """Give QEMU a descriptor, under a name."""
        # libvirt 8.2 and later: `--pass-fds` sends the descriptor with the command.
        await self._execute("getfd", {"fdname": name}, descriptor.fileno())

    async def _execute(
        self, command: str, arguments: dict[str, Any], fd: int | None = None
    ) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        passed = () if fd is None else ("--pass-fds", str(fd))
        text = await self._ask(
            *("qemu-monitor-command", *passed, "--cmd", request), fd=fd
        )
        with understood(self._qemu, command):
            answer = json.loads(text)
            if "error" in answer:
                raise PlugError(
                    f"{self._qemu} refuses {command}: {answer['error']['desc']}",
                    code="H096",
                )
            return answer["return"]

    async def gone(self) -> None:
        """Return when the last run of the domain that was seen has ended."""
        if self._run is None:
            return
        # All devices of the domain wait for one watch.
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._wait_ended(self._run))
        # A device that is removed must not cancel it for the others.
        await asyncio.shield(self._watch)

    async def _wait_ended(self, run: str) -> None:
        """Look at the domain after each of its events, and every WATCH_TIME seconds."""
        # The event alone would not do: one that comes between two runs of `virsh event`
        # is missed.
        with contextlib.suppress(PlugError):
            while (await self._live()).run == run:
                await self._event()
                # Also where virsh fails at once: the loop must not run hot.
                await asyncio.sleep(EVENT_LOOK)

    async def _event(self) -> None:
        """Wait for an event, at most WATCH_TIME seconds."""
        # Not through `_ask`: the wait would hold up the other commands.
        words = ("event", "--domain", self._name, "--event", "lifecycle")
        timeout = ("--timeout", str(WATCH_TIME))
        # For virsh it is an error if no event has come in time.
        with contextlib.suppress(PlugError):
            await self._virsh.run(*words, *timeout, more_time=WATCH_TIME)

    async def close(self) -> None:
        """Stop watching the domain; what is plugged stays plugged."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _live(self) -> Live:
        """Return the running domain.

        Raises:
            VmAway: it does not run, or libvirt does not say.
        """
        async with self._turn:
            # Many devices look for the same domain every second: ask libvirt once
            # for all of them.
            if self._loop.time() < self._away_until:
                raise VmAway(self._away, code=self._away_code)
            try:
                live = await self._look()
            except VmAway as error:
                self._away, self._away_code = str(error), error.code
                self._run = None
                self._away_until = self._loop.time() + AWAY_TIME
                raise
            self._run = live.run
            return live

    async def _look(self) -> Live:
        try:
            text = await self._virsh.run("dumpxml", "--domain", self._name)
            live = Live.parse(text)
        except VmAway:
            raise
        # A domain that libvirt does not know may be defined yet: the reconciler waits
        # for it like for one that does not run.
        except (PlugError, ET.ParseError) as error:
            raise VmAway(
                f"cannot read domain {self._name!r} of libvirt at {self._virsh.uri}: "
                f"{error}; give a name that `virsh list --all` shows",
                code="H097",
            ) from error
        if live is None:
            raise VmAway(
                f"waiting for domain {self._name!r}, which does not run", code="H098"
            )
        return live

    async def _ask(
        self,
        command: str,
        *words: str,
        more_time: float = 0,
        file: str = "",
        fd: int | None = None,
    ) -> str:
        """Run a virsh command on the domain; commands wait for each other."""
        async with self._turn:
            words = (command, "--domain", self._name, *words)
            return await self._virsh.run(*words, more_time=more_time, file=file, fd=fd)
