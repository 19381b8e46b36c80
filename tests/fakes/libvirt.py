# SPDX-License-Identifier: Apache-2.0
"""A fake virsh with one domain.

A test uses `FakeLibvirt`.  Run as a program, this file is virsh: it reads from a
directory what it must do, and records there how it was called.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

DOMAIN = """\
<domain type='{kind}' id='{run}'>
  <devices>
    <controller type='pci' index='0' model='{root}'><alias name='pcie.0'/></controller>
    {root_ports}
  </devices>
</domain>"""
ROOT_PORT = """\
<controller type='pci' index='{bus}' model='pcie-root-port'>
  <target hotplug='{hotplug}'/>
  <alias name='port-{bus}'/>
</controller>"""
TOP = 2**40
"""The distance between the addresses of one root port and those of the next."""


class FakeLibvirt:
    """The test's control over the fake virsh and its domain."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        virsh = self.bin / "virsh"
        virsh.write_text(
            f'#!/bin/sh\nexec {sys.executable} {__file__} {directory} "$@"\n'
        )
        virsh.chmod(0o755)

    def start(
        self,
        shares: Mapping[int, int] | None = None,
        *,
        run: int = 1,
        kind: str = "kvm",
        root: str = "pcie-root",
        hotplug: str = "on",
    ) -> None:
        """Run the domain with a root port for each bus number in `shares`.

        A value of `shares` is the root port's bytes of address space.
        """
        shares = {2: 2**30} if shares is None else shares
        root_ports = "".join(
            ROOT_PORT.format(bus=bus, hotplug=hotplug) for bus in shares
        )
        text = DOMAIN.format(kind=kind, run=run, root=root, root_ports=root_ports)
        self._write("domain", text)
        self._write("shares", json.dumps(shares))

    def shut_off(self) -> None:
        """Stop the domain; it stays defined."""
        self._write("domain", "<domain type='qemu'><devices/></domain>")
        self._write("event", "")

    def say(self, text: str) -> None:
        """Make virsh print this text as the XML of the domain."""
        self._write("domain", text)

    def refuse(self, command: str, text: str) -> None:
        """Make a command fail with this text on standard error."""
        self._write(f"refuse.{command}", text)

    def allow(self, command: str) -> None:
        """Make a refused command work again."""
        (self._directory / f"refuse.{command}").unlink()

    def hang(self, command: str) -> None:
        """Make a command hang for a minute."""
        self._write(f"hang.{command}", "")

    def ignore_unplugs(self) -> None:
        """Make the guest ignore each unplug until `release_devices`."""
        self._write("ignore-unplugs", "")

    def release_devices(self) -> None:
        """Make the guest release all devices whose unplug was asked for."""
        (self._directory / "ignore-unplugs").unlink()
        domain = Domain(self._directory)
        for alias in self.asked("detach-device-alias", "--alias"):
            domain.detach(alias)

    def give_no_addresses(self) -> None:
        """Make the guest assign no address to a plugged device."""
        self._write("no-addresses", "")

    def set_up_nothing(self) -> None:
        """Leave the root ports as they are before the firmware has run."""
        self._write("early", "")

    def answer_monitor(self, text: str) -> None:
        """Make QEMU answer each monitor command with this text."""
        self._write("monitor", text)

    def asked(self, command: str, option: str) -> list[str]:
        """Return the value of `option` in each run of a command."""
        return [
            words[words.index(option) + 1]
            for words in self.calls()
            if words[3] == command
        ]

    def calls(self) -> list[list[str]]:
        """Return the words of all commands so far."""
        log = self._directory / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]

    def executed(self, command: str) -> list[dict[str, str]]:
        """Return the arguments of each run of a monitor command."""
        requests = map(json.loads, self.asked("qemu-monitor-command", "--cmd"))
        return [one["arguments"] for one in requests if one["execute"] == command]

    def shmems(self) -> list[ET.Element]:
        """Return the windows that the domain has."""
        return Domain(self._directory).root.findall("devices/shmem")

    def _write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text)


class Domain:
    """The domain's XML."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "domain"
        self.root = ET.fromstring(self._path.read_text())

    def attach(self, text: str) -> None:
        """Add a device, with an alias as libvirt gives it."""
        device = ET.fromstring(text)
        devices = self._devices()
        alias = f"shmem{sum(1 for _ in devices.iter('shmem'))}"
        ET.SubElement(device, "alias", name=alias)
        devices.append(device)
        self._write()

    def detach(self, alias: str) -> None:
        """Remove the device that has this alias."""
        devices = self._devices()
        for shmem in devices.findall("shmem"):
            if shmem.find(f"alias[@name='{alias}']") is not None:
                devices.remove(shmem)
        self._write()

    def monitor(self, request: str, passed: str) -> str:
        """Return QEMU's answer to a monitor command."""
        if (said := self._directory / "monitor").exists():
            return said.read_text()
        command = json.loads(request)["execute"]
        answer: object = {}
        if command == "query-pci":
            answer = self._query_pci()
        elif command == "query-kvm":
            answer = {"enabled": self.root.get("type") == "kvm"}
        elif command == "qom-get":
            answer = 1
        elif command == "getfd":
            os.fstat(int(passed))
        return json.dumps({"return": answer, "id": "libvirt-9"})

    def _query_pci(self) -> object:
        shares = json.loads((self._directory / "shares").read_text())
        root_ports = [self._root_port(int(bus), share) for bus, share in shares.items()]
        return [{"bus": 0, "devices": root_ports}]

    def _root_port(self, bus: int, share: int) -> dict[str, object]:
        early = (self._directory / "early").exists()
        addresses = {"base": bus * TOP, "limit": bus * TOP + share - 1}
        behind = {"secondary": 0 if early else bus, "prefetchable_range": addresses}
        return {
            "qdev_id": f"port-{bus}",
            "class_info": {"class": 0x0604},
            "regions": [{"bar": 0, "address": -1}],
            "pci_bridge": {"bus": behind, "devices": list(self._behind(bus))},
        }

    def _behind(self, bus: int) -> Iterator[dict[str, object]]:
        no_addresses = (self._directory / "no-addresses").exists()
        for shmem in self.root.iterfind("devices/shmem"):
            place, alias = shmem.find("address"), shmem.find("alias")
            assert alias is not None, "an attached device has no alias"
            if place is not None and int(place.get("bus", ""), 0) == bus:
                yield {
                    "qdev_id": alias.get("name"),
                    "class_info": {"class": 0x0500},
                    "regions": [
                        {"bar": 2, "address": -1 if no_addresses else bus * TOP}
                    ],
                }

    def _devices(self) -> ET.Element:
        devices = self.root.find("devices")
        assert devices is not None, "no devices"
        return devices

    def _write(self) -> None:
        self._path.write_text(ET.tostring(self.root, encoding="unicode"))


def main(directory: Path, words: list[str]) -> int:
    """Run one virsh command; return its exit status."""
    with (directory / "calls").open("a") as log:
        log.write(json.dumps(words) + "\n")
    command, options = words[3], dict(zip(words[4::2], words[5::2], strict=False))
    if (directory / f"hang.{command}").exists():
        time.sleep(60)
    if (refusal := directory / f"refuse.{command}").exists():
        sys.stderr.write(refusal.read_text())
        return 1
    if command == "dumpxml":
        print((directory / "domain").read_text())
    elif command == "attach-device":
        Domain(directory).attach(Path(options["--file"]).read_text())
    elif command == "detach-device-alias":
        if not (directory / "ignore-unplugs").exists():
            Domain(directory).detach(options["--alias"])
    elif command == "qemu-monitor-command":
        request, passed = options["--cmd"], options.get("--pass-fds", "")
        print(Domain(directory).monitor(request, passed))
    elif command == "event":
        return wait_event(directory / "event", int(options["--timeout"]))
    return 0


def wait_event(path: Path, seconds: int) -> int:
    """Wait so long for an event of the domain; return an exit status."""
    for _ in range(20 * seconds):
        if path.exists():
            return 0
        time.sleep(0.05)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
