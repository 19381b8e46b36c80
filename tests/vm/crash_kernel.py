# SPDX-License-Identifier: Apache-2.0
"""A kernel that starts where the guest's own one crashes, as with kdump.

It has a part of the guest's memory that the first kernel leaves alone.  No device is
reset in between: a network card goes on filling the first kernel's buffers until the
second one's driver resets it.  That one pings a peer, as a dump that is sent over the
network would need it, says on the console how that went, and reboots.
"""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from tests.vm import debs, power, qemu
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums
from tests.vm.cpio import CpioWriter
from tests.vm.harness import Vm
from tests.vm.image import Image
from tests.vm.kernels import Kernel

PLACE = "/crash"
"""The directory of the guest that has the kernel to start."""

APPEND = f"{qemu.APPEND} crashkernel=160M"
"""The kernel command line of a guest with 512 MiB, which keeps the memory free.

More may not be there in one piece: a kernel lies where chance has put it.
"""

LOAD = """
import ctypes, os, sys
kernel, initrd = (os.open(path, os.O_RDONLY) for path in sys.argv[1:3])
line = sys.argv[3].encode() + b"\\0"
KEXEC_FILE_LOAD, ON_CRASH = 320, 2
libc = ctypes.CDLL(None, use_errno=True)
size = ctypes.c_ulong(len(line))
if libc.syscall(KEXEC_FILE_LOAD, kernel, initrd, size, line, ctypes.c_ulong(ON_CRASH)):
    sys.exit("kexec_file_load: " + os.strerror(ctypes.get_errno()))
"""

INIT = """\
#!/busybox sh
/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module; done
ip addr add {own}/24 dev eth0
ip link set eth0 up
echo "crash kernel: $(ping -c {count} -W 5 {peer} | grep transmitted)"
reboot -f
"""

MAKE_INITRD = """\
set -e
mkdir -p bin dev proc sys modules
cp $(command -v busybox) busybox
modprobe --show-depends -a virtio_pci virtio_net | while read -r insmod path more; do
    test $insmod = insmod || continue
    cp $path modules/; basename $path >> modules/order
done
find . | busybox cpio -o -H newc > ../initrd
"""


def beside(image: Image, kernel: Kernel, directory: Path) -> Image:
    """Return this image, with the crash kernel beside the guest's files.

    Args:
        image: of the guest, which runs this kernel as well.
        kernel: the crash kernel.
        directory: where the new image is written, some 70 MB.
    """
    initrd = directory / "initrd"
    shutil.copyfile(image.initrd, initrd)
    with initrd.open("ab") as file:
        archive = CpioWriter(file)
        archive.tree(_packed(kernel))
        archive.close()
    return replace(image, initrd=initrd)


def load(vm: Vm, *, own: str, peer: str, count: int) -> None:
    """Have the guest start the crash kernel when it crashes.

    Args:
        vm: the guest, booted with :data:`APPEND` and the image of :func:`beside`.
        own: the crash kernel's address.
        peer: the address that it pings.
        count: so many times.
    """
    init = INIT.format(own=own, peer=peer, count=count)
    vm.put(f"{PLACE}/root/init", init.encode(), 0o755)
    vm.put(f"{PLACE}/load.py", LOAD.encode())
    vm.run(f"cd {PLACE}/root; {MAKE_INITRD}")
    line = f"{qemu.APPEND} nr_cpus=1 reset_devices"
    vm.run(["python3", f"{PLACE}/load.py", f"{PLACE}/vmlinuz", f"{PLACE}/initrd", line])
    vm.run(f"rm -r {PLACE}")


def crash(vm: Vm) -> tuple[int, int]:
    """Crash the guest; once it is back, return how many were sent and answered."""
    said = vm.serial_log.stat().st_size
    vm.spawn(power.PANIC)
    vm.wait_ready()
    text = vm.serial_log.read_bytes()[said:].decode(errors="replace")
    found = re.search(r"crash kernel: (\d+) packets transmitted, (\d+)", text)
    assert found, vm.last_words()
    return int(found[1]), int(found[2])


@one_at_a_time()
def _packed(kernel: Kernel) -> Path:
    """A directory with PLACE, where the kernel is as Debian packs it.

    That is the only form that kexec_file_load(2) takes.
    """
    name = kernel.image_packages()[:2][-1]
    found = debs.locate([name], kernel.archive())

    def unpack(path: Path, _: Path) -> None:
        directory = cache_dir() / "debs"
        debs.download([name], found, directory, kernel.archive())
        (deb,) = found
        target = path / PLACE.lstrip("/")
        target.mkdir()
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(directory / deb.filename)],
            stdout=subprocess.PIPE,
        ) as reader:
            subprocess.run(
                [
                    *("tar", "-x", "-C", str(target), "--wildcards", "*/vmlinuz*"),
                    *("--transform", "s,.*/vmlinuz.*,vmlinuz,"),
                ],
                check=True,
                stdin=reader.stdout,
                timeout=600,
            )

    inputs = [repr(found), *sums([Path(__file__)])]
    return entry("packed-kernels", inputs, unpack, keep=3)
