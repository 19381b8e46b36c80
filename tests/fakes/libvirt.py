# SPDX-License-Identifier: Apache-2.0
"""A virsh with one domain, which does what the test wants.

`FakeLibvirt` is the test's side.  Run as a program this file is virsh itself; what it
shall do, and what it was asked, lies in a directory.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

DOMAIN = """\
<domain type='qemu' id='{run}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <devices>
    <controller type='pci' index='0' model='{root}'><alias name='pcie.0'/></controller>
    {ports}
    <controller type='usb' index='0'>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </controller>
  </devices>
  <qemu:override>{reserves}</qemu:override>
</domain>"""
PORT = """\
<controller type='pci' index='{bus}' model='pcie-root-port'>
  <target hotplug='{hotplug}'/>
  <alias name='ua-{bus}'/>
  <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x{bus}'/>
</controller>"""
RESERVE = """\
<qemu:device alias='ua-{bus}'><qemu:frontend>
  <qemu:property name='pref64-reserve' type='unsigned' value='{reserve}'/>
</qemu:frontend></qemu:device>"""


class FakeLibvirt:
    """What the virsh of this test finds."""

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
        ports: Mapping[int, int] | None = None,
        *,
        run: int = 1,
        root: str = "pcie-root",
        hotplug: str = "on",
    ) -> None:
        """Run the domain, with ports 1, which is taken, and some with a reserve."""
        ports = {2: 0} if ports is None else ports
        text = DOMAIN.format(
            run=run,
            root=root,
            ports="".join(PORT.format(bus=n, hotplug=hotplug) for n in (1, *ports)),
            reserves="".join(
                RESERVE.format(bus=n, reserve=size) for n, size in ports.items() if size
            ),
        )
        self._write("domain", text)

    def shut_off(self) -> None:
        """Have the domain defined, and not running."""
        self._write("domain", "<domain type='qemu'><devices/></domain>")
        self._write("event", "")

    def say(self, text: str) -> None:
        """Print that as the domain's XML."""
        self._write("domain", text)

    def refuse(self, command: str, text: str) -> None:
        """Let a command fail, with these lines."""
        self._write(f"refuse.{command}", text)

    def allow(self, command: str) -> None:
        """Let it do its work again."""
        (self._directory / f"refuse.{command}").unlink()

    def hang(self, command: str) -> None:
        """Let a command never end."""
        self._write(f"hang.{command}", "")

    def hold_on(self) -> None:
        """Let the guest not let go of what is unplugged."""
        self._write("hold", "")

    def let_go(self) -> None:
        """Let it let go of all that it was asked for."""
        (self._directory / "hold").unlink()
        domain = Domain(self._directory)
        for alias in self.asked("detach-device-alias", "--alias"):
            domain.detach(alias)

    def answer_monitor(self, answer: object) -> None:
        """Let QEMU say that."""
        self._write(
            "monitor", answer if isinstance(answer, str) else json.dumps(answer)
        )

    def asked(self, command: str, option: str) -> list[str]:
        """Return what `option` was each time that a command was run."""
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

    def shmems(self) -> list[ET.Element]:
        """Return the windows that the domain has."""
        return Domain(self._directory).root.findall("devices/shmem")

    def _write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text)


class Domain:
    """The domain's XML."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "domain"
        self.root = ET.fromstring(self._path.read_text())

    def attach(self, text: str) -> None:
        """Have one more device."""
        device = ET.fromstring(text)
        devices = self._devices()
        alias = f"shmem{len(devices.findall('shmem'))}"
        ET.SubElement(device, "alias", name=alias)
        devices.append(device)
        self._write()

    def detach(self, alias: str) -> None:
        """Have it no more."""
        devices = self._devices()
        for shmem in devices.findall("shmem"):
            if shmem.find(f"alias[@name='{alias}']") is not None:
                devices.remove(shmem)
        self._write()

    def _devices(self) -> ET.Element:
        devices = self.root.find("devices")
        assert devices is not None, "no devices"
        return devices

    def _write(self) -> None:
        self._path.write_text(ET.tostring(self.root, encoding="unicode"))


def main(directory: Path, words: list[str]) -> int:
    """Be virsh."""
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
        if not (directory / "hold").exists():
            Domain(directory).detach(options["--alias"])
    elif command == "qemu-monitor-command":
        print((directory / "monitor").read_text())
    elif command == "event":
        return wait_event(directory / "event")
    return 0


def wait_event(path: Path) -> int:
    """Wait until something happens to the domain."""
    for _ in range(200):
        if path.exists():
            return 0
        time.sleep(0.05)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
