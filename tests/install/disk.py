# SPDX-License-Identifier: Apache-2.0
"""The disk of a VM in which Debian has just been installed, with systemd.

debootstrap's smallest system, Debian's kernel and initramfs, and a few packages: no
compiler, and nothing of ours but the server that runs the tests' commands.
"""

import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.install import fresh, systemd_image
from tests.vm import image
from tests.vm.cache import cache_dir, digest, discard_old, one_at_a_time, sums
from tests.vm.cache import fresh as fresh_entry

log = logging.getLogger(__name__)

PACKAGES = """
    initramfs-tools iproute2 iputils-ping kmod linux-image-amd64 mawk procps
    python3-venv systemd-sysv udev
"""

SIZE = "3G"

FILES = {
    "etc/initramfs-tools/conf.d/vhostpci": "MODULES=list\nCOMPRESS=gzip\n",
    # The virtual disk that the VM boots from.
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/hostname": "debian\n",
    "etc/fstab": "",
    "etc/machine-id": "76686f73747063690000000000000002\n",
}


@dataclass(frozen=True, slots=True)
class Disk:
    """What a VM boots: a disk, and the kernel and initramfs that are on it."""

    disk: Path
    kernel: Path
    initrd: Path

    def copy(self, target: Path) -> Path:
        """Copy the disk, for one VM to write on."""
        argv = ["cp", "--sparse=always", str(self.disk), str(target)]
        subprocess.run(argv, check=True, timeout=300)
        return target


@one_at_a_time("disk.lock")
def build(codename: str, place: Path) -> Disk:
    """The disk with a release of Debian, from the cache if nothing of it has changed.

    Args:
        codename: the release.
        place: an empty directory to work in.
    """
    base = fresh.base(codename)
    makers = [Path(__file__), Path(systemd_image.__file__), image.SERVER]
    key = digest([codename, str(base), *sums(makers)])
    made = cache_dir() / "disks" / f"{codename}-{key}"
    if not made.exists():
        log.info("installing Debian %s with systemd on a disk, 200 MB", codename)
        with fresh_entry(made) as path, fresh.machine(codename, place) as new:
            path.mkdir()
            _install(new)
            _take_kernel(new, path)
            new.make_disk(path / "disk", SIZE)
        discard_old(made.parent.glob(f"{codename}-*"), keep=1)
    os.utime(made)
    return Disk(made / "disk", made / "kernel", made / "initrd")


def _install(new: fresh.FreshMachine) -> None:
    root = new.path(Path("/"))
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    new.run(
        "apt-get install --no-install-recommends -o Dpkg::Options::=--force-confold "
        + " ".join(PACKAGES.split())
    )
    assert new.attempt("command -v cc gcc").returncode
    systemd_image.add_server(root)


def _take_kernel(new: fresh.FreshMachine, target: Path) -> None:
    boot = new.path(Path("/boot"))
    (kernel,) = boot.glob("vmlinuz-*")
    (initrd,) = boot.glob("initrd.img-*")
    image.unpack_kernel(kernel, target / "kernel")
    shutil.copy(initrd, target / "initrd")
