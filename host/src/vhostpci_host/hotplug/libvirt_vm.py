# SPDX-License-Identifier: Apache-2.0
"""A slave VM that libvirt manages: its QMP socket is libvirt's, so virsh is asked.

All that is known of the domain is in its live XML, read anew for each step.  A
window is known there by the name of its `<shmem>`, the `object_id` that QMP has too.

It is plugged into the port that `bridges` finds.  Left to itself libvirt would look
for a slot of conventional PCI, of which a q35 domain has none.
"""

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass
from typing import Any, Self
from xml.etree import ElementTree as ET

from ..interfaces import Plug
from . import pci_ports, shmem_xml
from .ids import object_id, windows_of
from .tcg_eventfds import Leftovers
from .virsh import FILE, Virsh
from .vm import PlugError, VmAway, understood

PLUG_TIME = 20.0
"""Seconds that libvirt has to plug beyond those to answer: QEMU takes part."""
UNPLUG_TIME = 8.0
"""Seconds that the guest has to let go, before it is to be asked again."""
UNPLUG_LOOK = 0.3
"""Seconds between two looks whether it has."""
AWAY_TIME = 0.9
"""Seconds for which a domain that is away is believed to be."""
WATCH_TIME = 10
"""Seconds after which the domain is looked at without an event."""
EVENT_LOOK = 0.5
"""Seconds from an event to the look at what it was."""
PORT = "pcie-root-port"


@dataclass(frozen=True, slots=True)
class Live:
    """A domain that runs, as its XML says."""

    run: str
    """libvirt's number of this run of it; another start has another."""
    windows: dict[str, str]
    """The aliases of all `<shmem>` there are, by their names."""
    ports: dict[str, int]
    """The numbers of the buses behind ports for hot-plug, by the ports' aliases."""
    express: bool
    """Whether its PCI bus is PCI Express."""
    kvm: bool
    """Whether it has KVM."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what `virsh dumpxml` says; None if the domain does not run."""
        root = ET.fromstring(text)
        run = root.get("id")
        if run is None:
            return None
        windows = {
            shmem.get("name", ""): _alias(shmem)
            for shmem in root.iterfind("devices/shmem")
        }
        ports = {
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
        self._turn, self._plugging = asyncio.Lock(), asyncio.Lock()
        self._away, self._away_until = "", 0.0
        self._run: str | None = None
        self._watch: asyncio.Task[None] | None = None
        self._leftovers = Leftovers()

    async def plugged(self, device: str) -> set[int]:
        """Return which windows of `device` the domain has."""
        return windows_of(device, (await self._live()).windows)

    async def plug(self, device: str, plug: Plug) -> None:
        """Plug one window; libvirt itself takes back what has failed."""
        async with self._plugging:
            live = await self._live()
            await self._clear(live)
            name = object_id(device, plug.window)
            element = shmem_xml.shmem(name, plug, bus=await self._bus(live, plug))
            try:
                await self._ask(
                    *("attach-device", "--file", FILE, "--live"),
                    more_time=PLUG_TIME,
                    file=shmem_xml.text(element),
                )
            except VmAway:
                raise
            except PlugError as error:
                raise PlugError(self._refusal(plug, str(error))) from error

    async def _bus(self, live: Live, plug: Plug) -> int | None:
        """Return where to plug it; None leaves it to libvirt, as in a PC of old."""
        if not live.express:
            return None
        answer = await self._query_pci()
        with understood(self._qemu, "query-pci"):
            ports = pci_ports.ports(answer, dict.fromkeys(live.ports, PORT))
        for port in pci_ports.best(ports, plug.size):
            return live.ports[port.name]
        raise self._no_place(ports, plug)

    def _no_place(self, ports: list[pci_ports.Port], plug: Plug) -> PlugError:
        if pci_ports.unset(ports):
            return PlugError(
                f"the firmware of domain {self._name!r} has not set up its PCI ports "
                "yet: waiting for it"
            )
        return PlugError(
            f"domain {self._name!r} has no free pcie-root-port for the "
            f"{pci_ports.size_text(plug.size)} of window {plug.window} (free: "
            f"{pci_ports.free_text(ports)}): shut it down and add ports, as `vhostpci-"
            "host xml --role slave` prints them"
        )

    def _refusal(self, plug: Plug, reason: str) -> str:
        mend = ""
        if "ermission denied" in reason:
            mend = (
                "; let QEMU's user and its AppArmor or SELinux profile reach "
                f"{plug.socket} (--socket-group)"
            )
        return (
            f"libvirt does not plug window {plug.window} into domain {self._name!r}: "
            f"{reason}{mend}"
        )

    async def unplug(self, device: str, window: int) -> None:
        """Unplug one window; return when the guest has let go."""
        name = object_id(device, window)
        live = await self._live()
        if name not in live.windows:
            return
        if live.kvm:
            await self._eject(name, window, live)
            return
        async with self._plugging:  # nothing new before what it leaves is cleared
            await self._leftovers.expect(self, live.windows[name])
            await self._eject(name, window, live)
            await self._clear(await self._live())

    async def _clear(self, live: Live) -> None:
        if not live.kvm:
            await self._leftovers.clear(self, set(live.windows.values()))

    async def _eject(self, name: str, window: int, live: Live) -> None:
        """Ask the guest to let go of a window, and wait until it has."""
        alias = live.windows[name]
        try:
            await self._ask("detach-device-alias", "--alias", alias, "--live")
        except VmAway:
            raise
        except PlugError as error:
            if "in the process of unplug" not in str(error):
                raise PlugError(
                    f"libvirt does not unplug window {window} of domain "
                    f"{self._name!r}: {error}"
                ) from error
        await self._wait_unplugged(name, window)

    async def _wait_unplugged(self, name: str, window: int) -> None:
        deadline = self._loop.time() + UNPLUG_TIME
        while name in (await self._live()).windows:
            if self._loop.time() > deadline:
                raise PlugError(
                    f"the guest of domain {self._name!r} has not let go of window "
                    f"{window}: it boots, or has no driver for PCI hot-plug"
                )
            await asyncio.sleep(UNPLUG_LOOK)

    async def unassigned(self, device: str) -> set[int]:
        """Return which of the plugged windows have no address in the guest."""
        windows = (await self._live()).windows
        answer = await self._query_pci()
        with understood(self._qemu, "query-pci"):
            without = pci_ports.unassigned(answer)
        names = [name for name, alias in windows.items() if alias in without]
        return windows_of(device, names)

    async def _query_pci(self) -> Any:
        return await self.execute("query-pci")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Have QEMU's monitor execute a command; its log then says: custom-monitor."""
        return await self._execute(command, arguments)

    async def hand_over(self, name: str, descriptor: socket.socket) -> None:
        """Give QEMU a descriptor, under a name."""
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
                    f"{self._qemu} refuses {command}: {answer['error']['desc']}"
                )
            return answer["return"]

    async def gone(self) -> None:
        """Return when the run of the domain has ended that was there last."""
        if self._run is None:
            return
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._wait_ended(self._run))
        await asyncio.shield(self._watch)

    async def _wait_ended(self, run: str) -> None:
        """Look at each event of the domain's, and now and then: one may be missed."""
        with contextlib.suppress(PlugError):
            while (await self._live()).run == run:
                await self._event()
                await asyncio.sleep(EVENT_LOOK)

    async def _event(self) -> None:
        """Wait for an event; for virsh it is an error if none has come in time."""
        words = ("event", "--domain", self._name, "--event", "lifecycle")
        timeout = ("--timeout", str(WATCH_TIME))
        with contextlib.suppress(PlugError):
            await self._virsh.run(*words, *timeout, more_time=WATCH_TIME)

    async def close(self) -> None:
        """Watch it no more; what is plugged stays plugged."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _live(self) -> Live:
        """Return the domain that runs.

        Raises:
            VmAway: it does not, or libvirt does not say; for all devices that ask
                within a second, libvirt is asked once.
        """
        async with self._turn:
            if self._loop.time() < self._away_until:
                raise VmAway(self._away)
            try:
                live = await self._look()
            except VmAway as error:
                self._away, self._run = str(error), None
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
        except (PlugError, ET.ParseError) as error:
            raise VmAway(
                f"libvirt at {self._virsh.uri} does not tell of domain {self._name!r}: "
                f"{error}; give a name that `virsh list --all` shows"
            ) from error
        if live is None:
            raise VmAway(f"waiting for domain {self._name!r}, which does not run")
        return live

    async def _ask(
        self,
        command: str,
        *words: str,
        more_time: float = 0,
        file: str = "",
        fd: int | None = None,
    ) -> str:
        """Have virsh do something with the domain; one thing at a time."""
        async with self._turn:
            words = (command, "--domain", self._name, *words)
            return await self._virsh.run(*words, more_time=more_time, file=file, fd=fd)
