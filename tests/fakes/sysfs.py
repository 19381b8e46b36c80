# SPDX-License-Identifier: Apache-2.0
"""A fake sysfs, /dev and /proc in a directory, with PCI drivers that bind and unbind.

All that the code reads is a real file, link or directory.  Only the effects of a write
are simulated.
"""

import errno
import mmap
import os
import select
import struct
from contextlib import suppress
from pathlib import Path

from vhostpci_guest.pci.kernel import System

CONFIG_SIZE = 256
BAR0, BAR2 = 256, 1 << 20


class FakeSystem(System):
    """A `System` whose file trees lie below `root`.

    Args:
        root: an empty directory.
        modules: drivers that modprobe can load.
    """

    def __init__(self, root: Path, *modules: str) -> None:
        super().__init__(root)
        self.modules = modules
        self.writes: list[tuple[str, str]] = []
        """File name and text of each write, in order."""
        self.deaf: set[str] = set()
        """Drivers that bind no device."""
        self.refusals: dict[str, str] = {}
        """Drivers that the kernel refuses to load, and why."""
        self.unsigned: set[str] = set()
        """Drivers without a signature."""
        self.busy: set[str] = set()
        """Nodes that are open in a process that /proc does not show."""
        self.low = False
        """Whether the BARs of devices plugged from now on lie below 4 GiB."""
        self._gone = root / "gone"
        for path in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "dev", "proc"):
            (root / path).mkdir(parents=True)
        self._gone.mkdir()

    def plug(
        self,
        address: str,
        *,
        vendor: str = "0x1af4",
        device: str = "0x1110",
        vectors: int = 3,
        driver: str | None = None,
        group: str | None = None,
        skip: int = 0,
    ) -> Path:
        """Plug a device in; return its directory in sysfs.

        Its registers (BAR 0) begin `skip` bytes after the start of a page.
        """
        path = self.sys / "bus/pci/devices" / address
        path.mkdir()
        (path / "vendor").write_text(f"{vendor}\n")
        (path / "device").write_text(f"{device}\n")
        (path / "driver_override").write_text("(null)\n")
        (path / "enable").write_text("0\n")
        (path / "config").write_bytes(config(vectors))
        sizes = [BAR0, 4096, BAR2]
        start = 1 << 31 if self.low else 1 << 32
        starts = [start + skip, start, start]
        lines = [
            f"{start:#018x} {start + size - 1:#018x} 0x0"
            for start, size in zip(starts, sizes, strict=True)
        ]
        (path / "resource").write_text("\n".join([*lines, "0x0 0x0 0x0", ""]))
        for index in (0, 2):
            (path / f"resource{index}").write_bytes(bytes(sizes[index]))
        if group is not None:
            (path / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
        if driver is not None:
            self.load_now(driver)
            self._bind(path, driver)
        return path

    def unplug(self, address: str) -> None:
        """Pull a device out; an access to its memory then raises SIGBUS."""
        path = self.sys / "bus/pci/devices" / address
        if (path / "driver").exists():
            self._unbind(path)
        for resource in path.glob("resource[02]"):
            os.truncate(resource, 0)
        # Move it instead of removing it: the inode must not be used again for a
        # device that is plugged at the same address later.
        path.rename(self._gone / f"{len(list(self._gone.iterdir()))}")

    def devices(self) -> list[Path]:
        """Return the directories of the plugged devices."""
        return list((self.sys / "bus/pci/devices").iterdir())

    def load_now(self, driver: str) -> None:
        """Load a driver."""
        (self.sys / "bus/pci/drivers" / driver).mkdir(exist_ok=True)

    def modprobe(self, module: str, *, dry: bool = False) -> str | None:
        """Load a driver; return modprobe's error message if that fails."""
        if module in self.refusals and not dry:
            return f"modprobe: ERROR: could not insert: {self.refusals[module]}"
        if module not in self.modules:
            return f"modprobe: FATAL: Module {module} not found in directory /lib"
        if not dry:
            self.load_now(module)
        return None

    def signer(self, module: str) -> str:
        """Return who signed a module; empty for a module without a signature."""
        return "" if module in self.unsigned else "the distribution"

    def write(self, path: Path, text: str, claim: int | None = None) -> None:
        """Write an attribute, and simulate the kernel's reaction."""
        self.writes.append((path.name, text.strip()))
        if path.name == "unbind":
            self._unbind(self.sys / "bus/pci/devices" / text)
        elif path.name == "drivers_probe":
            self._probe(self.sys / "bus/pci/devices" / text)
        elif path.name == "driver_override":
            path.write_text(f"{text.strip() or '(null)'}\n")
        elif path.name == "enable":
            if (path.parent / "driver").exists():
                raise OSError(16, "Device or resource busy")
            count = int(path.read_text()) + (1 if text == "1" else -1)
            path.write_text(f"{count}\n")
        else:
            raise FileNotFoundError(path)

    def _probe(self, device: Path) -> None:
        driver = (device / "driver_override").read_text().strip()
        loaded = self.sys / "bus/pci/drivers" / driver
        if driver != "(null)" and loaded.exists() and driver not in self.deaf:
            self._bind(device, driver)

    def matches(self, address: str, driver: str) -> bool:
        """Return whether driver_override lets a driver that knows the ID bind."""
        path = self.sys / "bus/pci/devices" / address / "driver_override"
        return path.read_text().strip() in ("(null)", driver)

    def open(self, node: Path) -> int:
        """Open a node; writes are appended to its file, where `armed` finds them."""
        users = node.name in self.busy or self.users([node])
        if users and self._has_window(node):
            raise OSError(errno.EBUSY, "Device or resource busy", str(node))
        return os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_APPEND)

    def readable(self, fd: int) -> bool:
        """Return whether a descriptor is readable.

        A plain file is always readable to poll(), and the nodes here are plain files.
        The node of uio_vhostpci counts as readable once its device is gone."""
        link = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if self.dev in link.parents:
            return not self._has_window(link)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def armed(self, node: str) -> list[tuple[int, int]]:
        """Return each vector and eventfd that was written to a node."""
        data = (self.dev / node).read_bytes()[mmap.PAGESIZE + BAR2 :]
        return [
            (word >> 20, word & 0xFFFFF) for (word,) in struct.iter_unpack("=i", data)
        ]

    def _has_window(self, node: Path) -> bool:
        """Return whether a node exists and belongs to uio_vhostpci."""
        with suppress(FileNotFoundError):
            return node.stat().st_size > 0
        return False

    def _bind(self, device: Path, driver: str) -> None:
        (device / "driver").symlink_to(self.sys / "bus/pci/drivers" / driver)
        if not driver.startswith("uio_"):
            return
        node = self.dev / f"uio{len(list(self.dev.glob('uio*')))}"
        (device / "uio" / node.name).mkdir(parents=True, exist_ok=True)
        node.touch()
        if driver == "uio_vhostpci":
            self._hand_over(device, node)

    def _hand_over(self, device: Path, node: Path) -> None:
        """Move the BARs from sysfs into the driver's node, as uio_vhostpci does."""
        skip = int((device / "resource").read_text().split()[0], 16) % mmap.PAGESIZE
        page = bytes(skip) + (device / "resource0").read_bytes()
        window = (device / "resource2").read_bytes()
        node.write_bytes(page.ljust(mmap.PAGESIZE, b"\0") + window)
        for index in (0, 2):
            (device / f"resource{index}").rename(device / f".resource{index}")
            (
                device / f"resource{index}"
            ).mkdir()  # a directory cannot be opened for mmap()

    def _unbind(self, device: Path) -> None:
        (device / "driver").unlink()
        for uio in device.glob("uio/*"):
            os.truncate(self.dev / uio.name, 0)
            uio.rmdir()
        for index in (0, 2):
            with suppress(FileNotFoundError):
                kept = (device / f".resource{index}").resolve(strict=True)
                (device / f"resource{index}").rmdir()
                kept.rename(device / f"resource{index}")

    def opened(self, node: str, *, pid: int, name: str) -> None:
        """Show in /proc that a process has a device node open."""
        fds = self.proc / str(pid) / "fd"
        fds.mkdir(parents=True)
        (fds.parent / "comm").write_text(f"{name}\n")
        os.symlink(self.dev / node, fds / "5")


def config(vectors: int) -> bytes:
    """Return a configuration space with two capabilities, MSI-X the second."""
    space = bytearray(CONFIG_SIZE)
    struct.pack_into("<H", space, 0x04, 2)  # memory space is enabled
    struct.pack_into("<H", space, 0x06, 0x10)
    space[0x34] = 0x40
    struct.pack_into("<BB", space, 0x40, 0x09, 0x50)
    if vectors:
        struct.pack_into("<BBH", space, 0x50, 0x11, 0, 0x8000 | (vectors - 1))
    return bytes(space)
