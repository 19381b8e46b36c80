# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of Debian's, for as long as a ``with`` block takes, and its VMs.

It runs in separate namespaces (mounts, processes, network): its state lies in a
temporary directory, it touches no network of the machine, and whatever it has
started ends with it, however that ends.
"""

import shlex
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from xml.etree import ElementTree as ET

from tests.vm import programs, qemu
from tests.vm.confined import ConfinedMaster
from tests.vm.daemon import Daemon
from tests.vm.harness import DIE_WITH_US, Vm
from tests.vm.image import Image
from tests.vm.pair import Master, Slave
from tests.vm.qemus import SUPPORTED
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
OWN_FILES = (f"/{programs.LIBRARIES}/libvirt", "/usr/share/libvirt")
"""Where a libvirtd looks for what belongs to it: drivers, processors, schemas."""
MODULES = f"/{programs.LIBRARIES}/qemu"
"""Where a QEMU looks for those of its modules that are not beside it.

libvirt has each QEMU load all modules that it knows, and one that meets those of
another build crashes (10.0: module_load_dso).
"""
PACKAGES = ("libvirt-daemon", "libvirt-daemon-driver-qemu")
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
memory_backing_dir = "{memory}"
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
sh program -f "$PWD/libvirtd.conf" -p "$PWD/pid" &
wait $!
"""
ISOLATED = (
    *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
    "--mount-proc",
)


class LibvirtError(Exception):
    """virsh returned an error."""


class Libvirtd:
    """A libvirtd for one test, apart from the machine's own.

    With ``suite`` it is that of another suite of Debian's, and runs `qemu`, not this
    machine's QEMU.
    """

    def __init__(self, logs: Path, suite: str = "") -> None:
        self.log = logs / "libvirtd.log"
        self.suite = suite

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        directory, self.memory_dir = (
            Path(self._stack.enter_context(TemporaryDirectory("", "vhostpci-", where)))
            for where in (None, "/dev/shm")
        )
        for name in (*DIRECTORIES, "no-modules"):
            (directory / name).mkdir()
        for name, (path, line) in ACCOUNTS.items():
            (directory / name).write_text(f"{Path(path).read_text()}{line}\n")
        (directory / "etc/qemu.conf").write_text(
            QEMU_CONF.format(memory=self.memory_dir)
        )
        (directory / "libvirtd.conf").write_text(
            LIBVIRTD_CONF.format(directory=directory)
        )
        self._socket = directory / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self._socket}"
        self.qemu_logs = directory / "log/qemu"
        program, mounts = self._program()
        (directory / "program").write_text(f'exec {shlex.join(program)} "$@"\n')
        self._start(directory, mounts)
        return self

    def qemu(self) -> str | None:
        """Return the QEMU of its suite; None for this machine's."""
        found = (one.program() for one in SUPPORTED.values() if one.suite == self.suite)
        return next(found, None)

    def _program(self) -> tuple[list[str], dict[str, str]]:
        """Return its command, and what is mounted where for it."""
        if not self.suite:
            return ["libvirtd"], {}
        found = programs.unpacked(self.suite, *PACKAGES)
        mounts = {f"{found.root}{path}": path for path in OWN_FILES}
        return found.command("usr/sbin/libvirtd"), {"no-modules": MODULES, **mounts}

    def _start(self, directory: Path, more: dict[str, str]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        accounts = {name: path for name, (path, _) in ACCOUNTS.items()}
        places = DIRECTORIES | accounts | more
        mounts = [word for pair in places.items() for word in pair]
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
        self._stack.close()

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
    """A VM that libvirt starts; a kernel to boot is added to its XML.

    ``words`` are added to those that each kernel has.
    """

    def __init__(
        self,
        name: str,
        image: Image,
        *,
        logs: Path,
        libvirtd: Libvirtd,
        xml: str,
        words: str = "",
    ) -> None:
        super().__init__(name, image, logs=logs)
        self._words = words
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
        # A confined master has the element for its memory, and on a virt with a mode.
        cpu = domain.find("cpu")
        cpu = ET.SubElement(domain, "cpu") if cpu is None else cpu
        mode = "host-passthrough" if qemu.has_kvm() else "maximum"
        cpu.set("mode", cpu.get("mode", mode))
        system, iommu = _find(domain, "os"), domain.find("devices/iommu") is not None
        ET.SubElement(system, "kernel").text = str(self._image.kernel)
        ET.SubElement(system, "initrd").text = str(self._image.initrd)
        own = qemu.append(self._image.architecture)
        words = [own, *(["intel_iommu=on"] if iommu else []), self._words]
        ET.SubElement(system, "cmdline").text = " ".join(words).strip()
        devices = _find(domain, "devices")
        serial = ET.SubElement(devices, "serial", type="file")
        ET.SubElement(serial, "source", path=str(self.serial_log))
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind", path=str(self.run_dir / "test"))
        ET.SubElement(channel, "target", type="virtio", name="vhostpci.test")
        return domain


class ManagedConfinedMaster(Managed, ConfinedMaster):
    """A confined master."""


class ManagedMaster(Managed, Master):
    """The master; its guest has nothing of this project."""


class ManagedSlave(Managed, Slave):
    """The slave VM, which runs the agent."""


def _find(element: ET.Element, tag: str) -> ET.Element:
    found = element.find(tag)
    assert found is not None, f"no <{tag}>"
    return found
