# SPDX-License-Identifier: Apache-2.0
"""Programs of the guest that take a mapping of the window apart.

Arguments: the device's PCI address, and what is mapped: ``node`` (the UIO node) or
``window`` (a window file).
"""

OPEN = """
import ctypes, fcntl, mmap, os, sys
from pathlib import Path
PAGE = mmap.PAGESIZE

def open_window():
    # Return what to map, and the offset of the window in it.
    name = next(Path(f"/sys/bus/pci/devices/{sys.argv[1]}/uio").iterdir()).name
    node = os.open(f"/dev/{name}", os.O_RDWR)
    if sys.argv[2] == "node":
        return node, PAGE
    return fcntl.ioctl(os.open("/dev/uio_vhostpci", os.O_RDWR), 0xA700, node), 0
"""

# The third of five pages is unmapped, the fourth read-only, the fifth moved; what is
# printed is the page's number, which the hypervisor has put there.  The last is the
# second page, as a child has it.
PARTS = (
    OPEN
    + """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.argtypes = [*libc.mmap.argtypes[:4], ctypes.c_void_p]
READ, WRITE, SHARED = mmap.PROT_READ, mmap.PROT_WRITE, mmap.MAP_SHARED
MOVE_TO = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED
start = libc.mmap(None, 5 * PAGE, READ | WRITE, SHARED, *open_window())
free = libc.mmap(None, PAGE, READ, SHARED | mmap.MAP_ANONYMOUS, -1, 0)
at = lambda address: ctypes.c_ubyte.from_address(address).value
assert libc.munmap(start + 2 * PAGE, PAGE) == 0
assert libc.mprotect(start + 3 * PAGE, PAGE, READ) == 0
print(at(start), at(start + PAGE), at(start + 3 * PAGE), end=" ")
assert libc.mremap(start + 4 * PAGE, PAGE, PAGE, MOVE_TO, free) == free
print(at(free), end=" ", flush=True)
if not os.fork():
    print(at(start + PAGE), flush=True)
    os._exit(0)
os.wait()
"""
)

# Four huge pages, whose pages 0, 128, 256 ... begin with their number.
HUGE_PARTS = (
    OPEN
    + """
HUGE = 2 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_size_t
libc.mmap.argtypes = [ctypes.c_size_t] * 6
libc.munmap.argtypes = [ctypes.c_size_t] * 2
libc.mprotect.argtypes = [ctypes.c_size_t] * 3
libc.mremap.argtypes = [ctypes.c_size_t] * 5
BOTH, SHARED, FIXED = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, 0x10
MOVE_TO = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED

def aligned(size):
    # Private memory at an aligned address.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    found = libc.mmap(0, size + HUGE, BOTH, flags, 2**64 - 1, 0)
    return found + -found % HUGE

def say(start, *pages):
    for page in pages:
        at = start + page * PAGE
        print(ctypes.c_uint16.from_address(at).value, flush=True)

def stores(at, word):
    # What is not mapped, or read-only, ends a child by a signal.
    if not (child := os.fork()):
        ctypes.c_uint16.from_address(at).value = 7
        os._exit(0)
    print(word if os.waitpid(child, 0)[1] else "stored", flush=True)

start = aligned(4 * HUGE)
assert libc.mmap(start, 4 * HUGE, BOTH, SHARED | FIXED, *open_window()) == start
for huge in range(4):
    ctypes.c_uint16.from_address(start + huge * HUGE + 100).value = huge
assert libc.munmap(start + 256 * PAGE, PAGE) == 0
say(start, 0, 384)
stores(start + 256 * PAGE, "hole")
assert libc.mprotect(start + 900 * PAGE, PAGE, mmap.PROT_READ) == 0
say(start, 640, 512, 1024, 1280)
stores(start + 900 * PAGE, "refused")
to = aligned(2 * HUGE)
last = start + 3 * HUGE
assert libc.mremap(last, HUGE, HUGE, MOVE_TO, to) == to
say(to, 0, 128)
assert libc.mremap(to, HUGE, HUGE, MOVE_TO, to + HUGE + PAGE) == to + HUGE + PAGE
last = to + HUGE + PAGE
say(last, 0, 128)
if not os.fork():
    say(start, 384, 1280)
    say(last, 128)
    os._exit(0)
os.wait()
say(start, 512)
assert libc.munmap(start + HUGE, HUGE) == 0
stores(start + 512 * PAGE, "gone")
say(start, 1024)
"""
)
