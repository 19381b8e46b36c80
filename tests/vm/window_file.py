# SPDX-License-Identifier: Apache-2.0
"""Programs of the guest that have window files and ties of uio_vhostpci."""

from tests.vm import node
from tests.vm.harness import Job, Vm

# What the programs share.  Argument: the device's PCI address.
LIBRARY = r"""
import errno, fcntl, mmap, os, resource, select, signal, struct, sys, time
from pathlib import Path

PAGE, HUGE = mmap.PAGESIZE, 2 << 20
WINDOW, TIE, UNTIE = 0xA700, 0x400CA701, 0x400CA702
control = os.open("/dev/uio_vhostpci", os.O_RDWR)

def open_node(flags=os.O_RDWR):
    name = next(Path(f"/sys/bus/pci/devices/{sys.argv[1]}/uio").iterdir()).name
    return os.open(f"/dev/{name}", flags)

def open_window(node):
    return fcntl.ioctl(control, WINDOW, node)

def map_window(file):
    # As a back-end does it: from offset 0, wherever the kernel likes it.
    return mmap.mmap(file, os.lseek(file, 0, os.SEEK_END))

def tie(node, eventfd, peer=7, vector=0, request=TIE):
    fcntl.ioctl(control, request, struct.pack("=iiHH", node, eventfd, vector, peer))

def untie(node, eventfd):
    tie(node, eventfd, request=UNTIE)

def arm(node, vector):
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    os.write(node, struct.pack("=i", vector << 20 | eventfd))
    return eventfd

def say(*words):
    print(*words, flush=True)

def say_error(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except OSError as error:
        return say(errno.errorcode[error.errno])
    say("done")
"""


def said(vm: Vm, program: str) -> list[str]:
    """Run a program to its end; return the words that it printed."""
    return vm.run(_argv(vm, program), timeout=60).stdout.split()


def start(vm: Vm, program: str, ready: str, *words: str) -> Job:
    """Start a program with these arguments; return when it has said so much."""
    job = vm.spawn([*_argv(vm, program), *words])
    job.wait_said(ready)
    return job


def _argv(vm: Vm, program: str) -> list[str]:
    vm.put("/tmp/window_file.py", (LIBRARY + program).encode())
    return ["python3", "/tmp/window_file.py", node.address(vm)]


# A process that has nothing of the device but the window file, as a back-end, reads it
# in a loop; the process that gave it the file has ended.
BACK_END = """
import socket

ours, theirs = socket.socketpair()
if not os.fork():
    socket.send_fds(theirs, [b"."], [open_window(open_node())])
    os._exit(0)
os.wait(), os.close(control)
file = socket.recv_fds(ours, 1, 1)[1][0]
view = map_window(file)
say("reads", view[5])

def map_again(*_):
    say_error(mmap.mmap, file, PAGE)

signal.signal(signal.SIGUSR1, map_again)
while "once" not in sys.argv:
    view[: 2**16]
signal.pause()
"""
