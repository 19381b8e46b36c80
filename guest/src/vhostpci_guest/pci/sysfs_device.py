# SPDX-License-Identifier: Apache-2.0
"""One PCI device in sysfs: what the kernel says of it, its claim and its driver.

The driver that was bound before is bound again at the end, even after a failure.  A
device that another uses is left alone: another agent (it has locked the device's
`config` file), a driver that is none of `SHAREABLE`, or a process that has such a
driver's node open.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import Unusable
from . import config_space
from .kernel import System

UIO_VHOSTPCI = "uio_vhostpci"
"""Our own driver.  It reserves the BARs, so they are mapped from its node only."""
SHAREABLE = ("vfio-pci", "uio_pci_generic", UIO_VHOSTPCI)
"""Drivers for user space: if no process has the node open, we unbind them."""

NO_DRIVER = "vhostpci-guest"
"""The name of no driver: as `driver_override` it keeps all drivers from a device."""
_HIDDEN = "a process that is hidden from us"
"""A user that /proc does not show, for example in another container."""


class PciDevice:
    """One ivshmem device, as the kernel shows it below /sys/bus/pci/devices."""

    def __init__(self, address: str, system: System) -> None:
        self.address = address
        self.going = False
        """Whether it is being unplugged, so that its old driver is not bound again."""
        self.system = system
        self.path = system.sys / "bus/pci/devices" / address
        self._claim: int | None = None
        """The descriptor by which we have claimed it."""

    @property
    def driver(self) -> str | None:
        """Name of the driver that is bound to it, None without one."""
        with suppress(FileNotFoundError):
            return (self.path / "driver").readlink().name
        return None

    @property
    def iommu_group(self) -> str | None:
        """Number of its IOMMU group, None if the machine has no (v)IOMMU."""
        with suppress(FileNotFoundError):
            return (self.path / "iommu_group").readlink().name
        return None

    def bar_size(self, index: int) -> int:
        """Return a BAR's length in bytes, 0 if the device does not have it."""
        start, end = self._bar(index)
        return end - start + 1 if end else 0

    def bar_skip(self, index: int) -> int:
        """Return where in its first page a BAR begins.

        A BAR begins at a page's start if its device is alone behind a root port.  Of
        devices side by side on one bus, the 256 bytes of registers of sixteen devices
        share a page, and the kernel maps whole pages.
        """
        return self._bar(index)[0] % mmap.PAGESIZE

    def bar_is_high(self, index: int) -> bool:
        """Whether a BAR is above 4 GiB; below, x86 firmware makes it uncached."""
        return self._bar(index)[0] >= 1 << 32

    def _bar(self, index: int) -> tuple[int, int]:
        """Return the first and the last address of a BAR; both are 0 without one."""
        # The lines 0 to 5 are the BARs.  A BAR that is absent has zeros, and so has one
        # to which the kernel has not given addresses yet.
        line = (self.path / "resource").read_text().splitlines()[index]
        start, end, _flags = (int(word, 16) for word in line.split())
        return start, end

    @property
    def complete(self) -> bool:
        """Whether the kernel has set it up: its BARs have addresses and files.

        The uevent "add" is sent before that.
        """
        with suppress(OSError):
            files = all((self.path / f"resource{bar}").exists() for bar in (0, 2))
            return files and self.bar_size(0) > 0 and self.bar_size(2) > 0
        return False

    def config(self) -> bytes:
        """Return its configuration space; without root only the first 64 bytes."""
        fd = self.system.open_attribute(self.path / "config")
        try:
            return os.pread(fd, config_space.SIZE, 0)
        finally:
            os.close(fd)

    @property
    def msix_vectors(self) -> int | None:
        """Number of its MSI-X vectors; None if only root may read it."""
        config = self.config()
        if len(config) < config_space.SIZE:
            return None
        return config_space.msix_vectors(config)

    def why_taken(self) -> str | None:
        """Return the driver or process that has it, which forbids a bind, or None."""
        driver = self.driver
        if driver is None:
            return None
        if driver not in SHAREABLE:
            return (
                f"bound to {driver}, which the agent does not unbind; to serve it: "
                f"echo {self.address} > /sys/bus/pci/drivers/{driver}/unbind"
            )
        # /proc first: it names the process.  To open the node, as the other way does,
        # makes an open by another process fail (EBUSY) meanwhile.
        users = self.system.users(self._nodes()) or self._hidden_users()
        return f"in use by {', '.join(users)} through {driver}" if users else None

    def _hidden_users(self) -> list[str]:
        """Return `_HIDDEN` if a process that /proc does not show has it.

        Only uio_vhostpci tells: its node can be open once, and is EBUSY then.
        """
        for node in self._uio_nodes() if self.driver == UIO_VHOSTPCI else ():
            try:
                os.close(self.system.open(node))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return [_HIDDEN]
        return []

    def _uio_nodes(self) -> Iterator[Path]:
        for uio in (self.path / "uio").glob("uio*"):
            yield self.system.dev / uio.name

    def _nodes(self) -> Iterator[Path]:
        """Yield the device nodes through which a process may use it."""
        yield from self._uio_nodes()
        for vfio in (self.path / "vfio-dev").glob("vfio*"):
            yield self.system.dev / "vfio/devices" / vfio.name
        if self.iommu_group is not None:
            yield self.system.dev / "vfio" / self.iommu_group

    @contextmanager
    def uio_node(self) -> Iterator[int]:
        """Keep the node of its UIO driver open.

        Raises:
            Unusable: there is no node, or another process has it open and the driver
                allows one process only.
            OSError: the driver refuses.
        """
        node = next(self._uio_nodes(), None)
        if node is None:
            raise Unusable(
                f"{self.address}: {self.driver} made no UIO device; see dmesg",
                code="G081",
            )
        try:
            fd = self.system.open(node)
        except FileNotFoundError:
            raise Unusable(
                f"{self.address}: there is no {node}: mount devtmpfs at /dev, or give "
                "the node to this container",
                code="G082",
            ) from None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            users = self.system.users([node]) or [_HIDDEN]
            raise Unusable(
                f"{self.address} is in use by {', '.join(users)} through {node}",
                code="G083",
            ) from None
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other agents from it, and check that no driver or process uses it.

        Raises:
            Unusable: another agent, driver or process uses it.
        """
        fd = self.system.open_attribute(self.path / "config")
        try:
            try:
                # The kernel releases the lock of an agent that is killed.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unusable(
                    f"{self.address} is in use by another vhostpci-guest", code="G084"
                ) from None
            # Under the lock: another agent may have been binding it, or giving it back.
            if why := self.why_taken():
                raise Unusable(f"{self.address} is {why}", code="G085")
            self._claim = fd
            try:
                yield
            finally:
                self._claim = None
        finally:
            os.close(fd)

    @contextmanager
    def bound(self, driver: str | None) -> Iterator[None]:
        """Bind it to `driver` (None: to none), and to the driver of before at the end.

        With None, `driver_override` is set so that no driver can bind, not even one
        that is loaded later: it would map the window beside us, and get our uncached
        memory type for it.

        Raises:
            Unusable: the driver does not take it.
            OSError: sysfs refuses.
        """
        before = self.driver
        with ExitStack() as undo:
            if before != driver:
                # First: also a failure below must bind the old driver again.
                undo.callback(self._put_back, driver, before)
                self._unbind()
                if driver is not None:
                    self._probe(driver)
            if driver is None:
                undo.enter_context(self._reserved(NO_DRIVER))
            yield

    def _put_back(self, driver: str | None, before: str | None) -> None:
        """Unbind `driver` and bind `before` again, unless it is being unplugged."""
        if self.going:
            return
        try:
            # A driver that another process has bound since then stays.
            if self.driver == driver:
                self._unbind()
            self._bind(before)
        except (OSError, Unusable):
            # Unplugged between the look at `going` and the write: nothing to restore.
            if self.path.exists():
                raise

    def _write(self, path: Path, text: str) -> None:
        """Write an attribute that is about it.

        Raises:
            Unusable: sysfs is read-only.
            OSError: the kernel refuses.
        """
        try:
            self.system.write(path, text, self._claim)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise Unusable(
                f"{self.address} can't be bound, because {self.system.sys} is "
                "read-only, as in a container: run the agent outside of it, or with "
                "--privileged",
                code="G086",
            ) from None

    def _unbind(self) -> None:
        if self.driver is not None:
            self._write(self.path / "driver/unbind", self.address)

    def _bind(self, driver: str | None) -> None:
        # Another may have bound a driver, or unplugged the device, since `_unbind`.
        if driver is not None and self.driver is None and self.path.exists():
            self._probe(driver)

    def _probe(self, driver: str) -> None:
        """Bind `driver`, and no other.

        Raises:
            Unusable: the driver refuses the device.
        """
        # The write succeeds even if no driver matches, so only the result counts.
        with self._reserved(driver), suppress(OSError):
            self._write(self.system.sys / "bus/pci/drivers_probe", self.address)
        if self.driver != driver:
            raise Unusable(
                f"{driver} does not take {self.address}; see dmesg", code="G087"
            )

    @contextmanager
    def _reserved(self, driver: str) -> Iterator[None]:
        """Let the kernel offer it to no other driver.

        `driver_override` is for this device alone; `new_id` would let the driver bind
        every ivshmem device, until the machine reboots.
        """
        # Put back at the end: the user may have reserved the device for another driver.
        override = self.path / "driver_override"
        before = override.read_text().strip()
        self._write(override, driver)
        try:
            yield
        finally:
            # `NO_DRIVER` was left by an agent that was killed; a line feed clears it.
            before = "\n" if before in ("(null)", NO_DRIVER) else before
            # Where it was unplugged, another device may be plugged already.
            with suppress(FileNotFoundError):  # unplugged, and `going` not set yet
                if not self.going:
                    self._write(override, before)

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Switch its memory on while no driver is bound.

        The kernel counts how often it was switched on, so at the end it stays on if
        others have switched it on, too.

        Raises:
            OSError: sysfs refuses.
        """
        self._write(self.path / "enable", "1")
        try:
            yield
        finally:
            # Where it was unplugged, another device may be plugged already.
            with suppress(OSError):  # unplugged unnoticed, or another driver is bound
                if not self.going:
                    self._write(self.path / "enable", "0")
