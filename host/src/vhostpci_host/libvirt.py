# SPDX-License-Identifier: Apache-2.0
"""A slave VM that libvirt manages: its QMP socket is libvirt's, so virsh is asked.

All that is known of the domain is in its live XML, read anew for each step.  A
window is known there by the name of its `<shmem>`, the `object_id` that QMP has too.

It is plugged into a pcie-root-port that is free, of those with room enough the
smallest.  Left to itself libvirt would look for a slot of conventional PCI, and find
none.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from xml.etree import ElementTree as ET

from . import domain
from .hotplug import PlugError, VmAway, object_id, window_of
from .ports import Plug
from .virsh import FILE, Virsh

log = logging.getLogger(__name__)

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
QUERY_PCI = json.dumps({"execute": "query-pci"})
WINDOW_BAR = 2
NO_ADDRESS = -1
"""What query-pci has for a BAR that the guest has not placed."""


@dataclass(frozen=True, slots=True)
class Port:
    """A pcie-root-port that has no device."""

    bus: int
    reserve: int
    """Bytes of address space for a window, 0 where nobody said how many."""


@dataclass(frozen=True, slots=True)
class Live:
    """A domain that runs, as its XML says."""

    run: str
    """libvirt's number of this run of it; another start has another."""
    aliases: dict[str, str]
    """By the names of all `<shmem>` there are."""
    ports: list[Port]
    express: bool
    """Whether its PCI bus is PCI Express."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what `virsh dumpxml` says; None if the domain does not run."""
        root = ET.fromstring(text)
        run = root.get("id")
        if run is None:
            return None
        aliases = {
            shmem.get("name", ""): alias.get("name", "")
            for shmem in root.iterfind("devices/shmem")
            if (alias := shmem.find("alias")) is not None
        }
        express = root.find("devices/controller[@model='pcie-root']") is not None
        return cls(run, aliases, list(_free_ports(root)), express)

    def port(self, size: int) -> Port | None:
        """Return the port for a window of `size` bytes; None if all are taken.

        A port that is too small may still do: a guest may find room for it.
        """
        enough = [port for port in self.ports if port.reserve >= size]
        if enough:
            return min(enough, key=lambda port: port.reserve)
        return max(self.ports, key=lambda port: port.reserve, default=None)


def _free_ports(root: ET.Element) -> Iterator[Port]:
    taken = {
        int(address.get("bus", "0"), 0)
        for address in root.iterfind("devices/*/address[@type='pci']")
    }
    reserves = _reserves(root)
    for port in root.iterfind("devices/controller[@model='pcie-root-port']"):
        bus, target = int(port.get("index", "0")), port.find("target")
        closed = target is not None and target.get("hotplug") == "off"
        alias = port.find("alias")
        if bus not in taken and not closed and alias is not None:
            yield Port(bus, reserves.get(alias.get("name", ""), 0))


def _reserves(root: ET.Element) -> dict[str, int]:
    """Return what ports have for windows, by their aliases."""
    name = {"qemu": domain.QEMU}
    return {
        device.get("alias", ""): int(found.get("value", "0"))
        for device in root.iterfind("qemu:override/qemu:device", name)
        for found in device.iterfind("qemu:frontend/qemu:property", name)
        if found.get("name") == "pref64-reserve"
    }


class LibvirtVm:
    """A domain (a `SlaveVm`), running or not.

    Args:
        name: the domain's.
        virsh: how libvirt is asked.
    """

    def __init__(self, name: str, virsh: Virsh | None = None) -> None:
        self._name = name
        self._virsh = virsh or Virsh()
        self._loop = asyncio.get_running_loop()
        self._turn, self._plugging = asyncio.Lock(), asyncio.Lock()
        self._away, self._away_until = "", 0.0
        self._run: str | None = None
        self._watch: asyncio.Task[None] | None = None

    async def plugged(self, device: str) -> set[int]:
        """Return which windows of `device` the domain has."""
        names = (await self._live()).aliases
        found = (window_of(device, name) for name in names)
        return {window for window in found if window is not None}

    async def plug(self, device: str, plug: Plug) -> None:
        """Plug one window; libvirt itself takes back what has failed."""
        async with self._plugging:
            live = await self._live()
            name = object_id(device, plug.window)
            element = domain.shmem(name, plug, bus=self._bus(live, plug))
            try:
                await self._ask(
                    *("attach-device", "--file", FILE, "--live"),
                    more_time=PLUG_TIME,
                    file=domain.text(element),
                )
            except VmAway:
                raise
            except PlugError as error:
                raise PlugError(self._refusal(plug, str(error))) from error

    def _bus(self, live: Live, plug: Plug) -> int | None:
        """Return where to plug it; None leaves it to libvirt, as in a PC of old."""
        if not live.express:
            return None
        port = live.port(plug.size)
        if port is None:
            raise PlugError(
                f"domain {self._name!r} has no pcie-root-port free for window "
                f"{plug.window}: shut it down and add some, as `vhostpci-host xml "
                "--role slave` prints them"
            )
        return port.bus

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
        alias = (await self._live()).aliases.get(name)
        if alias is None:
            return
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
        while name in (await self._live()).aliases:
            if self._loop.time() > deadline:
                raise PlugError(
                    f"the guest of domain {self._name!r} has not let go of window "
                    f"{window}: it boots, or has no driver for PCI hot-plug"
                )
            await asyncio.sleep(UNPLUG_LOOK)

    async def unassigned(self, device: str) -> set[int]:
        """Return which of the plugged windows have no address in the guest.

        libvirt's XML does not say, so QEMU is asked through it; libvirt notes that in
        its log (tainted: custom-monitor).
        """
        aliases = (await self._live()).aliases
        try:
            text = await self._ask("qemu-monitor-command", "--cmd", QUERY_PCI)
            lacking = set(_unassigned(json.loads(text)["return"]))
        except VmAway:
            raise
        except (PlugError, ValueError, KeyError, TypeError) as error:
            log.debug("%s: cannot tell if windows have addresses: %s", device, error)
            return set()
        return {
            window
            for name, alias in aliases.items()
            if (window := window_of(device, name)) is not None and alias in lacking
        }

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
        self, command: str, *words: str, more_time: float = 0, file: str = ""
    ) -> str:
        """Have virsh do something with the domain; one thing at a time."""
        async with self._turn:
            words = (command, "--domain", self._name, *words)
            return await self._virsh.run(*words, more_time=more_time, file=file)


def _unassigned(buses: list[dict[str, Any]]) -> Iterator[str]:
    """Return the IDs of devices whose window has no address, as query-pci says."""
    for bus in buses:
        for device in bus["devices"]:
            behind = device.get("pci_bridge", {}).get("devices", [])
            yield from _unassigned([{"devices": behind}])
            for region in device["regions"]:
                if region["bar"] == WINDOW_BAR and region["address"] == NO_ADDRESS:
                    yield device["qdev_id"]
