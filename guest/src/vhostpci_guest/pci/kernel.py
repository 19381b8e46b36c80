# SPDX-License-Identifier: Apache-2.0
"""This machine's kernel: its file trees, its modules, and why one is not loaded."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_SOURCES = {
    "uio_vhostpci": "it is built for each kernel: apt install dkms "
    "linux-headers-{release}, then the commands of kmod/README.md",
}
"""How to get a module that the kernel's own package does not have."""

_SIGN = (
    "Secure Boot or lockdown refuses the module {driver} ({last}); enrol the key that "
    "signs it (DKMS: mokutil --import /var/lib/dkms/mok.pub, and boot), or switch "
    "Secure Boot off, or use vfio"
)
_REBUILD = (
    "the module {driver} is not made for {release} ({last}); build it again for this "
    "kernel (dkms autoinstall)"
)
_REASONS = {
    "not found": "no kernel module {driver} for {release}; {source}",
    "Key was rejected": _SIGN,
    "Required key not available": _SIGN,
    "Exec format error": _REBUILD,
    "Invalid module format": _REBUILD,
}
"""Words of modprobe's error, and the text that we log instead."""
_REFUSED = "Operation not permitted"
_NO_RIGHT = (
    "no permission to load the module {driver}: run as root; in a container, modprobe "
    "{driver} outside of it"
)


class System:
    """The kernel's file trees below a root directory, and its modules.

    All methods may be called on any thread.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.sys = root / "sys"
        self.dev = root / "dev"
        self.proc = root / "proc"
        self.ours: tuple[int, ...] = ()
        """Further processes that are ours, and so none of the `users`."""

    @property
    def release(self) -> str:
        """The running kernel's version, as ``uname -r`` prints it."""
        return os.uname().release

    def write(self, path: Path, text: str, claim: int | None = None) -> None:
        """Write an attribute in one system call: sysfs takes each for a whole value.

        Args:
            path: the attribute.
            text: its value.
            claim: the descriptor by which the device is claimed (`PciDevice.claimed`);
                the kernel does not ask for it, but a helper does.
        """
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def open(self, node: Path) -> int:
        """Open a device node.

        Raises:
            OSError: there is no node, or its driver refuses.
        """
        return os.open(node, os.O_RDWR | os.O_CLOEXEC)

    def hold(self, name: str, fd: int) -> None:
        """Have a descriptor stay open for longer than we live, until `let_close`.

        Here it does not: only a helper outlives us (pci/hold.py).

        Raises:
            Unusable, OSError: it cannot be held.
        """

    def let_close(self, name: str) -> None:
        """Have it held no more; raises as `hold` does."""

    def open_attribute(self, path: Path, *, write: bool = False) -> int:
        """Open a file of sysfs.

        Raises:
            OSError: there is none, or it is not for us.
        """
        mode = os.O_RDWR if write else os.O_RDONLY
        return os.open(path, mode | os.O_CLOEXEC)

    @property
    def locked_down(self) -> bool:
        """Whether kernel lockdown is on, as with Secure Boot."""
        # The mode in force is the one in brackets.  The file is missing in a kernel
        # without lockdown, and where securityfs is not mounted.
        lockdown = self.sys / "kernel/security/lockdown"
        return lockdown.exists() and "[none]" not in lockdown.read_text()

    def load(self, driver: str, *, dry: bool = False) -> str | None:
        """Load a PCI driver's module; return why it is not loaded, or None.

        Args:
            driver: its name below /sys/bus/pci/drivers.
            dry: load nothing, and only find out whether it could be loaded.
        """
        # A driver that is loaded or built into the kernel needs no modprobe, which may
        # be missing in a container.
        path = self.sys / "bus/pci/drivers" / driver
        if path.exists():
            return None
        said = self.modprobe(driver, dry=dry)
        # A dry run finds the module's file, and hands it to no kernel: what the kernel
        # would refuse for its signature is found out here.
        if said is None and dry and driver in _SOURCES:
            said = self._unsigned(driver)
        if said is not None:
            return self._why_not(driver, said)
        if dry or path.exists():
            return None
        return (
            f"the module {driver} is loaded but has no PCI driver {driver}: it is "
            "another module of this name"
        )

    def modprobe(self, module: str, *, dry: bool = False) -> str | None:
        """Run modprobe for a module; return its error, or None if it succeeds."""
        out, error = _run("modprobe", *(["-n"] if dry else []), module)
        return error if out is None else None

    def _unsigned(self, module: str) -> str | None:
        """Return the error that modprobe would print for a module without a signature.

        None for a module that is signed: only the kernel knows which keys it accepts.
        """
        if not self.locked_down or self.signer(module) != "":
            return None
        return f"{_REFUSED}: it is not signed"

    def signer(self, module: str) -> str | None:
        """Return the owner of the key that signed a module; None if modinfo fails."""
        return _run("modinfo", "-F", "signer", module)[0]

    def _why_not(self, driver: str, said: str) -> str:
        """Return what is wrong and what to do, from the error of modprobe."""
        reason = "the module {driver} can't be loaded: {last}; see dmesg"
        # EPERM is the kernel's answer in lockdown to a module without a signature, and
        # also to a process without CAP_SYS_MODULE; modprobe prints the same for both.
        if _REFUSED in said:
            reason = _SIGN if self.locked_down else _NO_RIGHT
        for words, meaning in _REASONS.items():
            if words in said:
                reason = meaning
        source = _SOURCES.get(driver, "another kernel package may have it")
        return reason.format(
            driver=driver,
            release=self.release,
            last=said.splitlines()[-1] if said else "modprobe fails",
            source=source.format(release=self.release),
        )

    def users(self, nodes: Iterable[Path]) -> list[str]:
        """Return which processes of others have one of `nodes`, as ``name (pid)``.

        Processes of other PID namespaces, and other users' without root, are hidden.
        """
        wanted = {str(node) for node in nodes}
        ours = {str(pid) for pid in (os.getpid(), *self.ours)}
        found = []
        for process in self.proc.glob("[0-9]*"):
            # A process may end while we look, or not be ours to look at.
            with suppress(OSError):
                links = {os.readlink(link) for link in (process / "fd").iterdir()}
                if links & wanted and process.name not in ours:
                    name = (process / "comm").read_text().strip()
                    found.append(f"{name} ({process.name})")
        return found

    def mapped_by(self, fd: int, processes: Iterable[int] | None) -> list[str]:
        """Return which of some processes have a file mapped, as ``name (pid)``.

        Args:
            fd: the file; that it was unplugged makes no difference.
            processes: their IDs; None for all that /proc shows.
        """
        found = []
        if processes is None:
            processes = (int(path.name) for path in self.proc.glob("[0-9]*"))
        for number in processes:
            process = self.proc / str(number)
            with suppress(OSError):  # it has ended, or is not ours to look at
                if _maps((process / "maps").read_text(errors="replace"), fd):
                    found.append(f"{(process / 'comm').read_text().strip()} ({number})")
        return found


def _maps(maps: str, fd: int) -> bool:
    """Whether a file is in the text of a process's maps (proc(5))."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    wanted = [device, str(status.st_ino)]
    return any(line.split()[3:5] == wanted for line in maps.splitlines())


def _run(*command: str) -> tuple[str | None, str]:
    """Return a program's standard output, None if it fails, and its standard error."""
    import subprocess  # slow to import, and needed only where a module is missing

    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        return None, f"{command[0]}: {error.strerror}"
    return None if done.returncode else done.stdout.strip(), done.stderr.strip()
