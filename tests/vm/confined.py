# SPDX-License-Identifier: Apache-2.0
"""A confined master, secrets in its memory, and a search of all that the slave sees.

  master                      vhostpci-host                 slave
private memory
shared region ----- the only file of memory there is ------ window
  bounce pool
  ring area
"""

import hashlib
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from tests.vm import image, process, qemu
from tests.vm.addons import Addon
from tests.vm.architecture import AMD64, Architecture
from tests.vm.daemon import Daemon
from tests.vm.harness import Job, Vm
from tests.vm.kernels import NEWEST, OF_ARM64, Kernel
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Master
from tests.vm.process import Process

MIB = 2**20
PAGE = 4096
KERNEL = NEWEST
"""The only one of Debian's for amd64 that has a ring area: CONFIG_DMA_CMA."""
MEMORY, POOL, REGION = 1676 * MIB, 64 * MIB, 80 * MIB


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine of QEMU's and a kernel for it."""

    kernel: Kernel
    memory: int = MEMORY
    options: tuple[str, ...] = ()
    """What says so to our commands."""
    qemu: str | None = None
    """Another QEMU than the usual one of that architecture."""

    @property
    def program(self) -> str | None:
        """The QEMU that has it; None for the usual one."""
        architecture = self.kernel.architecture
        return self.qemu or (None if architecture is AMD64 else architecture.program)


Q35 = Platform(KERNEL)
VIRTS = [Platform(kernel, 6400 * MIB, ("--machine", "virt")) for kernel in OF_ARM64]
"""With more memory above 4 GiB than below: else Linux lends the ring area."""

Change = tuple[str, str]
"""A text and what stands in its place: how a test makes a set-up wrong."""


def changed(text: str, changes: Sequence[Change]) -> str:
    """Return a text with all changes made, each of which must apply."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"no {old!r} in {text!r}")
        text = text.replace(old, new)
    return text


# Arguments: a name, how many MiB, and a file or nothing.  Each page is full of the
# name's digest, which is computed here: what comes through the console is not it.
KEEP = r"""
import hashlib, mmap, os, signal, sys
name, mib, *path = sys.argv[1:]
page = hashlib.sha256(name.encode()).digest() * 128
size = int(mib) << 20
if path:
    with open(path[0], "wb", buffering=0) as file:
        for _ in range(int(mib)):
            file.write(page * 256)
else:
    kept = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(int(mib)):
        kept.write(page * 256)
print("kept", flush=True)
if not path:
    signal.pause()
"""


def digest(name: str) -> bytes:
    """Return what each page of a secret is full of."""
    return hashlib.sha256(name.encode()).digest()


# Arguments: a file or a BAR, then what to look for, in hexadecimal.  A regular file is
# not mapped: that would fill its holes.
SEARCH = r"""
import json, mmap, os, stat, sys
path, *wanted = sys.argv[1:]
file = os.open(path, os.O_RDONLY)
size, chunk = os.fstat(file).st_size, 16 << 20
if "/sys/" in path:
    view = mmap.mmap(file, size, prot=mmap.PROT_READ)
    read = lambda length, at: view[at : at + length]
else:
    read = lambda length, at: os.pread(file, length, at)
found, searched, most = dict.fromkeys(wanted, 0), 0, max(map(len, wanted)) // 2
for at in range(0, size, chunk):
    data = read(chunk + most - 1, at)
    searched += min(chunk, len(data))
    for text in wanted:
        needle = bytes.fromhex(text)
        found[text] += data.count(needle, 0, chunk + len(needle) - 1)
assert searched == size
print(json.dumps([size, found]))
"""


# It takes what comes and reads none of it, so that each packet takes fresh memory.
HOLD = r"""
import signal, socket
FORCE = 33
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, FORCE, 48 << 20)
    server.bind(("", 4000))
    server.listen()
    print("listens", flush=True)
    taken, _ = server.accept()
    signal.pause()
"""
SEND = r"""
import socket, sys
with socket.create_connection((sys.argv[1], 4000), timeout=60) as connection:
    connection.sendall(bytes(12 << 20))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """How often each secret was found, and how many bytes were searched."""

    bytes: int
    times: dict[str, int]


def search(path: Path, wanted: dict[str, bytes]) -> Found:
    """Search every byte of a file for some secrets, by their names."""
    argv = [sys.executable, "-c", SEARCH, str(path), *_texts(wanted)]
    return _found(subprocess.check_output(argv, text=True, timeout=120), wanted)


def search_in(vm: Vm, path: str, wanted: dict[str, bytes]) -> Found:
    """Search every byte of a BAR, in the VM that has it."""
    vm.put("/tmp/search.py", SEARCH.encode())
    argv = ["python3", "/tmp/search.py", path, *_texts(wanted)]
    return _found(vm.run(argv, timeout=120).stdout, wanted)


def _texts(wanted: dict[str, bytes]) -> list[str]:
    return [text.hex() for text in wanted.values()]


def _found(output: str, wanted: dict[str, bytes]) -> Found:
    size, times = json.loads(output)
    return Found(size, {name: times[text.hex()] for name, text in wanted.items()})


# Arguments: the first page frame and how many.
KINDS = r"""
import collections, json, struct, sys
first, count = map(int, sys.argv[1:])
NAMES = {7: "slab", 26: "page table", 12: "anonymous", 5: "file", 11: "file",
    14: "file", 17: "huge", 23: "offline", 24: "zero", 32: "reserved", 10: "free",
    20: "no page"}
with open("/proc/kpageflags", "rb") as file:
    file.seek(8 * first)
    flags = struct.unpack(f"{count}Q", file.read(8 * count))
with open("/proc/kpagecount", "rb") as file:
    file.seek(8 * first)
    maps = struct.unpack(f"{count}Q", file.read(8 * count))
def kind(flag):
    return next((NAMES[bit] for bit in NAMES if flag >> bit & 1), "allocated")
print(json.dumps([collections.Counter(map(kind, flags)), sum(map(bool, maps))]))
"""


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of a range of a guest's memory."""

    kinds: dict[str, int]
    """How many there are of each kind."""
    mapped: int
    """How many are mapped by a process."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range of guest addresses."""

    start: int
    end: int

    @property
    def pages(self) -> int:
        """Its size in pages."""
        return (self.end - self.start) // PAGE


def _keeps(name: str, mib: int) -> str:
    return shlex.join(["python3", "/tmp/keep.py", name, str(mib)])


class ConfinedMaster(Master):
    """A master that keeps secrets, and that tells what its memory is used for."""

    def keep(self, name: str, mib: int) -> Job:
        """Keep a secret in each page of so much anonymous memory."""
        return self._keep(name, str(mib))

    def write(self, name: str, mib: int, path: str) -> None:
        """Keep a secret in each page of a file in the page cache."""
        self._keep(name, str(mib), path).wait(120)

    def _keep(self, *words: str) -> Job:
        self.put("/tmp/keep.py", KEEP.encode())
        job = self.spawn(["python3", "/tmp/keep.py", *words])
        job.wait_said("kept", timeout=120)
        return job

    def exhaust(self, name: str, mib: int) -> None:
        """Write a secret into more anonymous memory than there is, until it is killed.

        Its pages are free then, and still have the secret in them.
        """
        self.put("/tmp/keep.py", KEEP.encode())
        self.run("echo 1 >/proc/sys/vm/overcommit_memory")
        job = self.spawn(f"echo 1000 >/proc/self/oom_score_adj; {_keeps(name, mib)}")
        assert job.wait(120) == 128 + signal.SIGKILL, job.output()

    def free(self, name: str, mib: int) -> None:
        """Free memory that was full of a secret."""
        path = "/tmp/freed"
        self.run(f"mount -o remount,size={mib + 64}M /tmp")
        self.write(name, mib, path)
        self.run(["rm", path])

    def pages(self, place: Range) -> Pages:
        """Tell the kinds of all pages of a range."""
        self.put("/tmp/kinds.py", KINDS.encode())
        numbers = [str(place.start // PAGE), str(place.pages)]
        output = self.run(["python3", "/tmp/kinds.py", *numbers], timeout=60).stdout
        return Pages(*json.loads(output))

    def pool(self) -> Range:
        """Where its kernel has the bounce pool."""
        said = self.run("dmesg").stdout
        found = re.search(r"IO TLB: mapped \[mem (0x\w+)-(0x\w+)\]", said)
        assert found, said
        return Range(int(found[1], 16), int(found[2], 16))

    def atomic_pools(self) -> int:
        """How many pages its kernel has in the ring area for DMA without a wait."""
        said = self.run("dmesg").stdout
        pools = re.findall(r"DMA: preallocated (\d+) KiB .* atomic allocations", said)
        return sum(map(int, pools)) * 1024 // PAGE

    def ring_area(self) -> Range:
        """Where its kernel has the ring area."""
        said = self.run("dmesg").stdout
        found = re.search(r"cma: Reserved (\d+) MiB at (0x\w+)", said)
        assert found, said
        start = int(found[2], 16)
        return Range(start, start + int(found[1]) * MIB)


@dataclass(frozen=True, slots=True)
class Link:
    """A confined master, its daemon, and its slave, a process."""

    daemon: Daemon
    master: ConfinedMaster
    slave: Process

    @property
    def window(self) -> Path:
        """The file that is the slave's window: it has all of it mapped."""
        return self.daemon.memory_dir / self.daemon.name

    def check(self, *options: str) -> dict[str, str]:
        """Run the script for masters in the master; return what is wrong there.

        Each check that finds something, with what it says and what repairs it.
        """
        script = self.daemon.master_check(*options)
        self.master.put("/tmp/check.sh", script.encode())
        said = self.master.run("busybox sh /tmp/check.sh; true", timeout=90).stdout
        (summary,) = re.findall(r"^\d+ checks, (\d+) wrong", said, re.M)
        wrong = re.findall(r"^wrong  ([\w-]+): (.*\n.*)$", said, re.M)
        assert len(wrong) == int(summary), said
        return dict(wrong)

    def receive(self) -> None:
        """Have the master receive 12 MB, and keep it."""
        self.master.put("/tmp/hold.py", HOLD.encode())
        job = self.master.spawn(["python3", "/tmp/hold.py"])
        job.wait_said("listens")
        argv = [sys.executable, "-c", SEND, MASTER_ADDRESS]
        self.slave.run(shlex.join(argv), timeout=90)
        job.stop()

    def shared_region(self) -> Range:
        """The only part of the master's memory that the daemon has."""
        (one,) = self.daemon.status()["master"]["regions"]
        return Range(one["guest_addr"], one["guest_addr"] + one["size"])


def secret_words(words: str) -> str:
    """Return some words of a master's kernel, and one that is a secret."""
    return f"{words} secret={COMMAND_LINE}"


def command_line(words: str = "", architecture: Architecture = AMD64) -> str:
    """Return the words of a master's kernel, one of which is a secret."""
    return f"{qemu.append(architecture)} {secret_words(words)}"


class Options(TypedDict, total=False):
    """How a confined master differs from the usual one."""

    args: Sequence[Change]
    """What is changed in its arguments."""
    words: Sequence[Change]
    """What is changed in its kernel's words."""
    more: Sequence[str]
    """More arguments."""
    addons: Sequence[Addon]
    """More programs that it has."""
    on: Platform
    """Its machine, its kernel and its QEMU; a q35 if there is none."""
    pool: int
    """Bytes of its bounce pool."""
    cpus: int
    """How many processors it has."""
    defaults: bool
    """Whether it has QEMU's default devices."""


def make(daemon: Daemon, logs: Path, **options: Unpack[Options]) -> ConfinedMaster:
    """Return a confined master, not started.

    Args:
        daemon: whose device it has.
        logs: where it writes its logs.
        options: how it differs from the usual one.
    """
    on = options.get("on", Q35)
    words = changed(daemon.kernel_words(*on.options), options.get("words", ()))
    line = command_line(words, on.kernel.architecture)
    full = "\0".join(daemon.qemu_args("master", *on.options))
    own = changed(full, options.get("args", ())).split("\0")
    return ConfinedMaster(
        *("master", image.build((), on.kernel, addons=options.get("addons", ()))),
        logs=logs,
        args=[*own, "-append", line, *options.get("more", ())],
        cpus=options.get("cpus", 1),
        defaults=options.get("defaults", False),
        program=on.program,
    )


COMMAND_LINE = "the-word-that-only-the-kernels-command-line-has"


def served(logs: Path, on: Platform = Q35, pool: int = POOL) -> Daemon:
    """Return the daemon of a confined device."""
    memory, confined = (f"{size // MIB}M" for size in (on.memory, pool))
    return Daemon(
        "card", memory=memory, confined=confined, logs=logs, program=on.program
    )


@contextmanager
def started(logs: Path, **options: Unpack[Options]) -> Iterator[Link]:
    """A confined master and a slave process."""
    with served(logs, options.get("on", Q35), options.get("pool", POOL)) as daemon:
        master = make(daemon, logs, **options)
        with master, process.serving(daemon, logs / "agent.log") as slave:
            master.wait_ready()
            yield Link(daemon, master, slave)


@contextmanager
def linked(logs: Path, **options: Unpack[Options]) -> Iterator[Link]:
    """The same, with packets crossing."""
    with started(logs, **options) as link:
        wait_packets(link)
        yield link


@contextmanager
def ordinary(logs: Path, on: Platform = Q35) -> Iterator[Link]:
    """An ordinary master with the same kernel, its slave, and packets crossing."""
    with Daemon("card", memory="1G", logs=logs, program=on.program) as daemon:
        line = command_line(architecture=on.kernel.architecture)
        master = ConfinedMaster(
            *("master", image.build((), on.kernel)),
            logs=logs,
            args=[*daemon.qemu_args("master"), "-append", line],
        )
        with master, process.serving(daemon, logs / "agent.log") as slave:
            master.wait_ready()
            link = Link(daemon, master, slave)
            wait_packets(link)
            yield link


def wait_packets(link: Link) -> None:
    """Give the master's card its address, and wait until packets cross."""
    link.master.configure()
    link.daemon.wait_state("running")
    link.slave.wait_tap()
    link.master.wait_for(f"ping -n -q -c 1 -W 1 {SLAVE_ADDRESS}")
