# SPDX-License-Identifier: Apache-2.0
"""Debian's libvirtd, for as long as a ``with`` block takes, and VMs that it manages.

It runs in separate namespaces (mounts, processes, network): its state lies in a
temporary directory, it touches no network of the machine, and whatever it has
started ends with it, however that ends.
"""

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from xml.etree import ElementTree as ET

from tests.vm import qemu
from tests.vm.daemon import Daemon
from tests.vm.harness import DIE_WITH_US, Vm
from tests.vm.image import Image
from tests.vm.pair import Master, Slave
from tests.waiting import wait_for

START_TIMEOUT = 90.0
PLUG_TIMEOUT = 90.0
DIRECTORIES = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
"""For each of our directories, libvirtd's directory that it is mounted over."""
ACCOUNTS = {
    "passwd": ("/etc/passwd", "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin"),
    "group": ("/etc/group", "libvirt-qemu:x:64055:"),
}
"""Accounts that libvirtd needs even if it is configured to use others.

Its package makes them, but would start a libvirtd on this machine too.
"""
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
LIBVIRTD_CONF = """\
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
# The shell is process 1 of the namespace and so becomes the parent of each QEMU.  It
# must wait for them: to libvirtd, an ended QEMU without a wait still runs.
INIT = """
cd "$1" && shift || exit 1
while [ $# -gt 0 ]; do
    [ -e "$2" ] || mkdir -p "$2"
    mount --bind "$1" "$2" && shift 2 || exit 1
done
libvirtd -f "$PWD/libvirtd.conf" -p "$PWD/pid" &
wait $!
"""
ISOLATED = (
    *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
    "--mount-proc",
)


class LibvirtError(Exception):
    """virsh returned an error."""


class Libvirtd:
    """A libvirtd for one test, apart from the machine's own."""

    def __init__(self, logs: Path) -> None:
        self.log = logs / "libvirtd.log"

    def __enter__(self) -> Self:
        self._temporary = TemporaryDirectory(prefix="vhostpci-")
        directory = Path(self._temporary.name)
        for name in DIRECTORIES:
            (directory / name).mkdir()
        for name, (path, line) in ACCOUNTS.items():
            (directory / name).write_text(f"{Path(path).read_text()}{line}\n")
        (directory / "etc/qemu.conf").write_text(QEMU_CONF)
        (directory / "libvirtd.conf").write_text(
            LIBVIRTD_CONF.format(directory=directory)
        )
        self._socket = directory / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self._socket}"
        self.qemu_logs = directory / "log/qemu"
        self._start(directory)
        return self

    def _start(self, directory: Path) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        accounts = {name: path for name, (path, _) in ACCOUNTS.items()}
        mounts = [word for pair in (DIRECTORIES | accounts).items() for word in pair]
        init = ["sh", "-c", INIT, "init", str(directory), *mounts]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_US, *ISOLATED, *init],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise LibvirtError(f"libvirtd does not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # --kill-child, and with the first process all the others
        self._process.wait()
        self._keep_logs()
        self._temporary.cleanup()

    def _answers(self) -> bool:
        try:
            return bool(self.virsh("uri"))
        except LibvirtError:
            return False

    def _keep_logs(self) -> None:
        for log in self.qemu_logs.glob("*.log"):
            (self.log.parent / f"libvirt-{log.name}").write_bytes(log.read_bytes())

    def virsh(self, *words: str, text: str = "") -> str:
        """Run virsh; `text` is its standard input, /dev/stdin to it."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            input=text,
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode:
            raise LibvirtError(f"virsh {' '.join(words)}: {done.stderr}")
        return done.stdout


class PluggingDaemon(Daemon):
    """Our daemon in attach mode, which plugs into a domain."""

    def __init__(self, name: str, libvirtd: Libvirtd, domain: str, logs: Path) -> None:
        super().__init__(name, memory="", logs=logs)
        self._options = ["--mode", "attach", "--slave-libvirt", domain]
        self._environment |= {"LIBVIRT_DEFAULT_URI": libvirtd.uri}

    def plugged(self) -> list[int]:
        """Return the windows that are plugged into the domain."""
        windows: list[int] = self.status()["plugging"]["plugged"]
        return windows

    def wait_plugged(self, windows: list[int]) -> None:
        """Wait until exactly these windows are plugged in."""
        wait_for(lambda: self.plugged() == windows, self.status, PLUG_TIMEOUT)


class Managed(Vm):
    """A VM that libvirt starts; a kernel to boot is added to its XML."""

    def __init__(
        self,
        name: str,
        image: Image,
        *,
        logs: Path,
        libvirtd: Libvirtd,
        xml: str,
    ) -> None:
        super().__init__(name, image, logs=logs)
        self._image = image
        self._libvirtd = libvirtd
        self._xml = xml
        self.domain = ET.fromstring(xml).findtext("name", "")

    def start(self) -> None:
        """Define the domain and start it."""
        self.serial_log.parent.mkdir(parents=True, exist_ok=True)
        self.run_dir = Path(
            self._stack.enter_context(TemporaryDirectory(prefix="vhostpci-"))
        )
        text = ET.tostring(self._bootable(), encoding="unicode")
        self._libvirtd.virsh("define", "--validate", "/dev/stdin", text=text)
        self._libvirtd.virsh("start", self.domain)

    def power_off(self) -> None:
        """Kill the VM; `power_on` may start it again."""
        self._libvirtd.virsh("destroy", self.domain)
        if self._channel:
            self._channel.close()
            self._channel = None

    def power_on(self) -> None:
        """Start the VM again, and wait until it takes commands."""
        self._libvirtd.virsh("start", self.domain)
        self.wait_ready()

    def close(self) -> None:
        """Kill the VM if it runs, and remove its sockets."""
        if self.is_running():
            self.power_off()
        super().close()

    def is_running(self) -> bool:
        """Return whether libvirt says that the domain runs."""
        return self.domain in self._libvirtd.virsh("list", "--name").split()

    def _bootable(self) -> ET.Element:
        """Return the domain with a guest in it that takes our commands."""
        domain = ET.fromstring(self._xml)
        cpu = "host-passthrough" if qemu.has_kvm() else "maximum"
        ET.SubElement(domain, "cpu", mode=cpu)
        system, iommu = _find(domain, "os"), domain.find("devices/iommu") is not None
        ET.SubElement(system, "kernel").text = str(self._image.kernel)
        ET.SubElement(system, "initrd").text = str(self._image.initrd)
        append = f"{qemu.APPEND} intel_iommu=on" if iommu else qemu.APPEND
        ET.SubElement(system, "cmdline").text = append
        devices = _find(domain, "devices")
        serial = ET.SubElement(devices, "serial", type="file")
        ET.SubElement(serial, "source", path=str(self.serial_log))
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind", path=str(self.run_dir / "test"))
        ET.SubElement(channel, "target", type="virtio", name="vhostpci.test")
        return domain


class ManagedMaster(Managed, Master):
    """The master; its guest has nothing of this project."""


class ManagedSlave(Managed, Slave):
    """The slave VM, which runs the agent."""


def _find(element: ET.Element, tag: str) -> ET.Element:
    found = element.find(tag)
    assert found is not None, f"no <{tag}>"
    return found
