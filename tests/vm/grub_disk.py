# SPDX-License-Identifier: Apache-2.0
"""A disk from which Debian's GRUB boots a kernel, with a BIOS and with EFI.

    0        MBR, GRUB's core image
    1 MiB    a FAT file system with GRUB for EFI, as Debian signs it
    33 MiB   ext4: the kernel, the initrd, grub.cfg

Nothing is mounted or installed: GRUB, OVMF and mtools run from their unpacked packages,
of which 22 MB are downloaded once.
"""

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm import programs
from tests.vm.debian import CODENAME

MIB = 2**20
SECTORS = MIB // 512
ESP = 32
"""MiB of the FAT file system."""
TABLE = 446
"""Where an MBR has its table of partitions."""
MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "serial")
PACKAGES = ("grub-pc-bin", "grub-common", "grub-efi-amd64-signed", "ovmf")
CONFIG = """\
serial --unit=0
terminal_output serial
set timeout=0
linux /boot/vmlinuz {words}
initrd {initrds}
boot
"""
FIND = """\
search.file /boot/grub/grub.cfg root
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
"""


def make(
    disk: Path, suite: str, *, kernel: Path, initrds: Sequence[Path], words: str
) -> None:
    """Make a disk with the GRUB of one of Debian's suites."""
    grub = programs.unpacked(suite, *PACKAGES)
    with TemporaryDirectory(dir=disk.parent) as name:
        work = Path(name)
        boot = work / "root/boot"
        (boot / "grub").mkdir(parents=True)
        shutil.copy(kernel, boot / "vmlinuz")
        for number, initrd in enumerate(initrds):
            shutil.copy(initrd, boot / f"initrd{number}")
        names = " ".join(f"/boot/initrd{number}" for number in range(len(initrds)))
        (boot / "grub/grub.cfg").write_text(CONFIG.format(words=words, initrds=names))
        size = 64 + sum(one.stat().st_size for one in boot.iterdir()) // MIB
        argv = ["mke2fs", "-q", "-t", "ext4", "-d", str(work / "root")]
        _run(*argv, str(work / "ext4"), f"{size}M")
        with disk.open("wb") as file:
            file.truncate((1 + ESP + size) * MIB)
            file.write(_boot_sector(grub, size) + _core(grub, work / "core"))
        target = [f"of={disk}", "bs=1M", f"seek={1 + ESP}", "conv=notrunc,sparse"]
        _run("dd", f"if={work / 'ext4'}", "status=none", *target)
        _make_esp(disk, grub, work / "find.cfg")


def firmware(suite: str, variables: Path) -> list[str]:
    """Return QEMU's arguments for OVMF; the file is for its variables."""
    home = programs.unpacked(suite, *PACKAGES).root / "usr/share/OVMF"
    shutil.copyfile(home / "OVMF_VARS_4M.fd", variables)
    flash = "if=pflash,format=raw,unit="
    return [
        *("-drive", f"{flash}0,readonly=on,file={home / 'OVMF_CODE_4M.fd'}"),
        *("-drive", f"{flash}1,file={variables}"),
    ]


def _boot_sector(grub: programs.Unpacked, size: int) -> bytes:
    def partition(kind: int, start: int, mib: int) -> bytes:
        return struct.pack("<B3xB3xII", 0, kind, start * SECTORS, mib * SECTORS)

    code = (grub.root / "usr/lib/grub/i386-pc/boot.img").read_bytes()[:TABLE]
    table = partition(0xEF, 1, ESP) + partition(0x83, 1 + ESP, size)
    return code + table.ljust(64, b"\0") + b"\x55\xaa"


def _core(grub: programs.Unpacked, target: Path) -> bytes:
    argv = ["-d", str(grub.root / "usr/lib/grub/i386-pc"), "-O", "i386-pc"]
    argv += ["-p", "(hd0,msdos2)/boot/grub", "-o", str(target), *MODULES]
    _run(*grub.command("usr/bin/grub-mkimage"), *argv)
    return target.read_bytes()


def _make_esp(disk: Path, grub: programs.Unpacked, find: Path) -> None:
    mtools = programs.unpacked(CODENAME, "mtools").command("usr/bin/mtools")

    def run(command: str, *argv: str) -> None:
        _run(*mtools, "-c", command, "-i", f"{disk}@@1M", *argv)

    find.write_text(FIND)
    image = grub.root / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    run("mformat", "-T", str(ESP * SECTORS), "-h", "64", "-s", "32", "::")
    run("mmd", "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
    run("mcopy", str(image), "::/EFI/BOOT/BOOTX64.EFI")
    run("mcopy", str(find), "::/EFI/debian/grub.cfg")


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=120, capture_output=True)
