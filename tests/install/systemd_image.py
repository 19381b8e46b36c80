# SPDX-License-Identifier: Apache-2.0
"""A VM's Debian with systemd as its init, in which our packages are installed by apt.

debootstrap's smallest system, a few packages and ours: no compiler, no source of ours.
A hypervisor has Debian's libvirt and QEMU, too.
All of it is one initramfs, so each boot begins with what was installed.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.install import fresh, packages
from tests.vm import image
from tests.vm.cache import cache_dir, digest, discard_old, one_at_a_time, sums
from tests.vm.cache import fresh as fresh_entry
from tests.vm.cpio import CpioWriter
from tests.vm.image import Image

PACKAGES = """
    systemd-sysv udev kmod iproute2 iputils-ping procps apparmor python3
"""
OURS = "vhostpci-guest vhostpci-host python3-vhostpci-shared python3-qemu.qmp"

PRUNED = """
    usr/share/doc usr/share/i18n usr/share/locale usr/share/man
    var/cache/apt var/lib/apt/lists root/vhostpci tmp
"""

MOUNTED = ("dev", "proc", "run", "sys")

INIT = """\
#!/bin/sh
# systemd gives services a root of their own by pivot_root(), which the kernel refuses
# while the root is that of the initramfs; on a second mount of it, it does not.
mount --bind / /mnt
cd /mnt
mount --move . /
exec chroot . /lib/systemd/systemd
"""

UNIT = """\
[Unit]
Description=Commands of the test
DefaultDependencies=no
After=systemd-udev-trigger.service

[Service]
ExecStartPre=-/sbin/modprobe -a virtio_pci virtio_console virtio_net
ExecStart=/usr/bin/python3 -S -E /usr/lib/vhostpci-test/server.py
TTYPath=/dev/console

[Install]
WantedBy=sysinit.target
"""

FILES = {
    "init": INIT,
    # A device unit of the serial console would be waited for.
    "etc/fstab": "",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a VM is for, with what it has beside that of all."""

    name: str
    packages: str
    files: Mapping[str, str]


SLAVE = Kind(
    "slave",
    "",
    {
        # The agent's TAP has an address from the beginning.
        "etc/vhostpci/guest.toml": 'tap = "vp0"\naddress = "10.77.0.2/24"\n',
        "etc/hostname": "slave\n",
    },
)
HYPERVISOR = Kind(
    "hypervisor",
    "libvirt-daemon-system libvirt-clients qemu-system-x86",
    {
        "etc/vhostpci.toml": """\
socket-group = "libvirt-qemu"
[device.net0]
memory = "64M"
[device.net1]
mode = "attach"
confined = "16M"
""",
        "etc/systemd/system/vhostpci-host.service.d/libvirt.conf": """\
[Service]
SupplementaryGroups=libvirt-qemu
""",
        "etc/hostname": "hypervisor\n",
    },
)


@one_at_a_time("systemd-image.lock")
def build(codename: str, place: Path, kind: Kind = SLAVE) -> Image:
    """The image, from the cache if nothing that goes into it has changed.

    Args:
        codename: the release of Debian.
        place: an empty directory to work in.
        kind: what the VM is for.
    """
    kernel = image.build()
    base = fresh.base(codename)
    key = digest(
        [
            *(codename, str(base), str(kernel.kernel), str(packages.built())),
            *sums([Path(__file__), image.SERVER]),
        ]
    )
    made = cache_dir() / "systemd" / f"{kind.name}-{codename}-{key}"
    if not made.exists():
        with fresh_entry(made) as path, fresh.machine(codename, place) as new:
            _install(new, kind)
            _copy(new.path(Path("/")), path / "root")
            _finish(path / "root", kernel, kind)
            _write(path / "root", path / "initrd")
        discard_old(made.parent.glob(f"{kind.name}-{codename}-*"), keep=1)
    os.utime(made)
    return Image(kernel=kernel.kernel, initrd=made / "initrd", release=kernel.release)


def root_of(made: Image) -> Path:
    """The file system that an image was made of."""
    return made.initrd.parent / "root"


def modules_of(made: Image) -> Path:
    """The directory with the modules of an image's kernel."""
    return made.kernel.parent / "modules" / made.release


def _copy(root: Path, target: Path) -> None:
    """Copy a machine, without what is mounted there, which is the files of this one."""
    mounted = {root / name for name in MOUNTED}

    def skipped(directory: str, names: list[str]) -> list[str]:
        return names if Path(directory) in mounted else []

    shutil.copytree(root, target, symlinks=True, ignore=skipped)


def _install(new: fresh.FreshMachine, kind: Kind) -> None:
    names = f"{PACKAGES} {kind.packages}".split()
    new.run(f"apt-get install --no-install-recommends {' '.join(names)}")
    debs = new.path(Path("/tmp/debs"))
    debs.mkdir()
    for name in OURS.split():
        shutil.copy(packages.package(name), debs)
    new.run("apt-get install --no-install-recommends /tmp/debs/*.deb")

    # An archive has no times of files, by which Python knows its byte code.
    new.run("python3 -m compileall -qf --invalidation-mode unchecked-hash /usr/lib")


def _finish(root: Path, kernel: Image, kind: Kind) -> None:
    for name in PRUNED.split():
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(modules_of(kernel), root / "usr/lib/modules" / kernel.release)
    for name, text in {**FILES, **kind.files}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "init").chmod(0o755)
    (root / "tmp").mkdir(mode=0o1777)
    add_server(root)
    (root / "etc/machine-id").write_text("76686f73747063690000000000000001\n")


def add_server(root: Path) -> None:
    """Let systemd start the server that runs the tests' commands."""
    tools = root / "usr/lib/vhostpci-test"
    tools.mkdir()
    shutil.copy(image.SERVER, tools)
    units = root / "etc/systemd/system"
    (units / "vhostpci-test.service").write_text(UNIT)
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "vhostpci-test.service").symlink_to("../vhostpci-test.service")


def _write(root: Path, target: Path) -> None:
    with target.open("wb") as file:
        archive = CpioWriter(file)
        archive.tree(root)
        archive.device("dev/console", 5, 1)
        archive.device("dev/null", 1, 3)
        archive.close()
