# SPDX-License-Identifier: Apache-2.0
"""A program of the guest that uses uio_vhostpci's node without our agent."""

from tests.vm.harness import Job, Vm

DRIVER = "/sys/bus/pci/drivers/uio_vhostpci"

# Arguments: the device's PCI address, how many vectors to arm, and words (see `use`).
PROGRAM = r"""
import ctypes, mmap, os, select, signal, struct, sys
from pathlib import Path

address, vectors, *words = sys.argv[1:]
name = next(Path(f"/sys/bus/pci/devices/{address}/uio").iterdir()).name
maps = Path(f"/sys/class/uio/{name}/maps")
node = os.open(f"/dev/{name}", os.O_RDWR)
size = int((maps / "map1/size").read_text(), 16)
skip = int((maps / "map0/offset").read_text(), 16)
registers = mmap.mmap(node, mmap.PAGESIZE)
# Where huge pages can be, as the agent does it: in a range that was larger by one.
HUGE, NO_RESERVE, FIXED = 2 << 20, 0x4000, 0x10
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
reserved = mmap.mmap(-1, size + HUGE, anonymous)
base = ctypes.addressof(ctypes.c_char.from_buffer(reserved))
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_size_t
libc.mmap.argtypes = [*[ctypes.c_size_t] * 2, *[ctypes.c_int] * 3, ctypes.c_long]
both = mmap.PROT_READ | mmap.PROT_WRITE
at = base + -base % HUGE
assert at == libc.mmap(at, size, both, mmap.MAP_SHARED | FIXED, node, mmap.PAGESIZE)
window = memoryview(reserved)[at - base : at - base + size]
events = select.epoll()
events.register(node)
(own_id,) = struct.unpack_from("=I", registers, skip + 8)
fds = {}

def arm(*_):
    for vector in range(int(vectors)):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        os.write(node, struct.pack("=i", vector << 20 | fd))
        events.register(fd, select.EPOLLIN)
        fds[fd] = vector
    print(f"armed {vectors}", flush=True)

signal.signal(signal.SIGUSR1, arm)
print(f"open, ID {own_id}, {size} bytes", flush=True)
if "late" not in words:
    arm()
while "read" in words:
    bytes(window[: 2**16])
while True:
    for fd, _ in events.poll():
        if fd == node:
            sys.exit("gone")
        os.eventfd_read(fd)
        print(f"vector {fds[fd]}", flush=True)
"""


def address(vm: Vm) -> str:
    """Return the PCI address of the one device that the module is bound to."""

    def bound() -> list[str]:
        names = vm.run(["ls", DRIVER], check=False).stdout.split()
        return [name for name in names if ":" in name]

    (place,) = vm.wait_until(bound, lambda: f"a device in {DRIVER}", 30)
    return place


def unbind(vm: Vm) -> None:
    """Unbind the device from the module."""
    vm.run(f"echo {address(vm)} > {DRIVER}/unbind")


def bind(vm: Vm) -> None:
    """Let the kernel bind the device to its driver again."""
    vm.run(
        "for device in /sys/bus/pci/devices/*; do grep -q 0x1110 $device/device && "
        "basename $device > /sys/bus/pci/drivers_probe; done; true"
    )


def has_huge_pages(vm: Vm) -> bool:
    """Whether the kernel can map a BAR by huge pages: from Linux 6.12 on."""
    major, minor, *_ = vm.run("uname -r").stdout.split(".")
    return (int(major), int(minor)) >= (6, 12)


def use(vm: Vm, *words: str, vectors: int = 3) -> Job:
    """Start the program and wait until it has opened the node.

    ``late``: it arms its vectors only at SIGUSR1.  ``read``: it reads the window in a
    loop and does not wait for vectors.
    """
    vm.put("/tmp/node.py", PROGRAM.encode())
    place = address(vm)
    job = vm.spawn(["python3", "/tmp/node.py", place, str(vectors), *words])
    job.wait_said("open" if "late" in words else "armed")
    return job
