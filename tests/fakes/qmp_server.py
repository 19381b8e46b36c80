# SPDX-License-Identifier: Apache-2.0
"""A fake QMP monitor on a Unix socket, with a fake guest behind it."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any, Self

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""},
        "capabilities": [],
    }
}
MIB, GIB = 2**20, 2**30
PERIPHERAL = "/machine/peripheral/"


class _CommandError(Exception):
    """An error that QEMU answers to a command."""


class FakeQemu:
    """A QEMU with root ports, chardevs and devices.

    It serves one client at a time, as QEMU does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root_ports: dict[str, tuple[int, int]] = {}
        self.fixed: set[str] = set()
        self.machine = "pc-q35-10.0-machine"
        self.chardevs: dict[str, str] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.commands: list[str] = []
        self.asked: Counter[str] = Counter()
        self.clients = 0
        self.addresses = True
        self.kvm = True
        self.watched = 0
        self._handed: set[str] = set()
        self._refusals: dict[str, str] = {}
        self._unanswered: set[str] = set()
        self._nonsense: set[str] = set()
        self._greets = True
        self._ignores_unplugs = self._refuses_unplugs = self._loses_events = False
        self._serving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._active: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def start(self) -> None:
        """Listen, as a QEMU that has just started."""
        self._server = await asyncio.start_unix_server(self._client, self.path)

    async def die(self) -> None:
        """Stop; all chardevs and devices are lost."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.chardevs.clear()
        self.devices.clear()

    def add_root_port(self, name: str, share: int, base: int = 4 * GIB) -> None:
        """Add a root port with `share` bytes of address space."""
        self.root_ports[name] = (base, base + share - 1)

    def refuse(self, command: str, reason: str = "because") -> None:
        """Answer a command with an error."""
        self._refusals[command] = reason

    def never_answer(self, command: str) -> None:
        """Never answer a command."""
        self._unanswered.add(command)

    def answer_nonsense(self, command: str) -> None:
        """Answer a command with a result that no QEMU gives."""
        self._nonsense.add(command)

    def answer_again(self) -> None:
        """Stop refusing, staying silent and holding devices."""
        self._refusals.clear()
        self._unanswered.clear()
        self._greets = True
        self._ignores_unplugs = self._refuses_unplugs = self._loses_events = False

    def lack_kvm(self) -> None:
        """Run without KVM: the vectors of unplugged devices stay watched."""
        self.kvm = False

    def never_greet(self) -> None:
        """Accept connections, but send no greeting."""
        self._greets = False

    def ignore_unplugs(self) -> None:
        """Make the guest ignore each unplug until `release_devices`."""
        self._ignores_unplugs = True

    def refuse_unplugs(self) -> None:
        """Make the guest refuse each unplug."""
        self._refuses_unplugs = True

    def lose_events(self) -> None:
        """Send no events, although the guest releases devices."""
        self._loses_events = True

    def release_devices(self) -> None:
        """Make the guest release all devices whose unplug was asked for."""
        self._ignores_unplugs = False
        for name in [name for name in self.devices if self.asked[name]]:
            self._delete(name)

    async def _client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            async with self._serving:
                self.clients += 1
                await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._active = None
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._active = writer
        if self._greets:
            self._say(GREETING)
        text = ""
        while data := await reader.read(4096):
            requests, text = _requests(text + data.decode())
            for request in requests:
                self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        command = request["execute"]
        self.commands.append(command)
        if command in self._unanswered:
            return
        try:
            result = self._execute(command, request.get("arguments", {}))
        except _CommandError as error:
            desc = {"class": "GenericError", "desc": str(error)}
            answer: dict[str, Any] = {"error": desc}
        else:
            answer = {"return": result}
        self._say(answer | {key: request[key] for key in ["id"] if key in request})

    def _say(self, message: dict[str, Any]) -> None:
        if self._active is not None:
            self._active.write(json.dumps(message).encode() + b"\r\n")

    def _tell(self, event: str, name: str) -> None:
        if not self._loses_events:
            data = {"device": name, "path": PERIPHERAL + name}
            stamp = {"seconds": 0, "microseconds": 0}
            self._say({"event": event, "data": data, "timestamp": stamp})

    def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in self._refusals:
            raise _CommandError(self._refusals[command])
        if command in self._nonsense:
            return [{"devices": None}]
        handler = getattr(self, "_" + command.replace("-", "_"))
        return handler(**arguments)

    def _qmp_capabilities(self, enable: list[str] | None = None) -> Any:
        return {}

    def _qom_list(self, path: str) -> Any:
        types = dict.fromkeys(self.root_ports, "pcie-root-port")
        types |= dict.fromkeys(self.devices, "ivshmem-doorbell")
        own = [{"name": "type", "type": "string"}]
        return own + [{"name": n, "type": f"child<{t}>"} for n, t in types.items()]

    def _qom_get(self, path: str, property: str) -> Any:
        if path == "/machine":
            return self.machine
        if property == "vectors":
            return self.devices[path.removeprefix(PERIPHERAL)]["vectors"]
        assert property == "hotplug"
        return path.removeprefix(PERIPHERAL) not in self.fixed

    def _query_chardev(self) -> Any:
        return [{"label": label} for label in self.chardevs]

    def _query_kvm(self) -> Any:
        return {"enabled": self.kvm, "present": True}

    def _getfd(self, fdname: str) -> Any:
        self._handed.add(fdname)
        return {}

    def _netdev_add(self, type: str, id: str, fd: str) -> Any:
        assert type == "socket"
        self._handed.remove(fd)
        return {}

    def _netdev_del(self, id: str) -> Any:
        if self.watched:
            self.watched -= 1
        return {}

    def _query_pci(self) -> Any:
        bridges = [self._bridge(name) for name in self.root_ports]
        on_root = [self._card(n) for n, d in self.devices.items() if "bus" not in d]
        return [{"bus": 0, "devices": bridges + on_root}]

    def _bridge(self, name: str) -> Any:
        base, limit = self.root_ports[name]
        ready = base < limit
        behind = [n for n, d in self.devices.items() if d.get("bus") == name]
        bus = {
            "secondary": int(ready),
            "prefetchable_range": {"base": base, "limit": limit},
        }
        bridge: dict[str, Any] = {"bus": bus}
        if ready:
            bridge["devices"] = [self._card(n) for n in behind]
        return {
            "qdev_id": name,
            "class_info": {"class": 0x0604},
            "regions": [],
            "pci_bridge": bridge,
        }

    def _card(self, name: str) -> Any:
        address = 4 * GIB if self.addresses else -1
        return {
            "qdev_id": name,
            "class_info": {"class": 0x0500},
            "regions": [{"bar": 0, "address": -1}, {"bar": 2, "address": address}],
        }

    def _chardev_add(self, id: str, backend: Any) -> Any:
        if id in self.chardevs:
            raise _CommandError(f"Chardev with id '{id}' already exists")
        assert backend["data"]["server"] is False
        self.chardevs[id] = backend["data"]["addr"]["data"]["path"]
        return {}

    def _chardev_remove(self, id: str) -> Any:
        if any(device["chardev"] == id for device in self.devices.values()):
            raise _CommandError(f"Chardev '{id}' is busy")
        del self.chardevs[id]
        return {}

    def _device_add(self, id: str, driver: str, **properties: Any) -> Any:
        assert driver == "ivshmem-doorbell"
        assert properties["chardev"] in self.chardevs
        if id in self.devices:
            raise _CommandError(f"Duplicate device ID '{id}'")
        self.devices[id] = properties
        return {}

    def _device_del(self, id: str) -> Any:
        self.asked[id] += 1
        if self._refuses_unplugs:
            self._tell("DEVICE_UNPLUG_GUEST_ERROR", id)
        elif not self._ignores_unplugs:
            asyncio.get_running_loop().call_soon(self._delete, id)
        elif self.asked[id] > 1:
            raise _CommandError(f"Device {id} is already in the process of unplug")
        return {}

    def _delete(self, name: str) -> None:
        vectors = self.devices.pop(name)["vectors"]
        self.watched += 0 if self.kvm else vectors
        self._tell("DEVICE_DELETED", name)


def _requests(text: str) -> tuple[list[dict[str, Any]], str]:
    """Split a stream, which need not have line ends, into objects and the rest."""
    found = []
    while text := text.lstrip():
        try:
            request, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            break
        found.append(request)
        text = text[end:]
    return found, text
