# SPDX-License-Identifier: Apache-2.0
"""A confined master that starts another kernel by kexec, and what its slave has then.

The next kernel and its initrd come over the confined card.
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import addons, confined, image, tiny_guest, traffic
from tests.vm.confined import MIB, PAGE, Link
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS
from tests.vm.test_confined import LINE, keep_secrets, secrets
from tests.vm.test_confined_limits import assert_no_packet_crosses, has_rings_elsewhere

pytestmark = [pytest.mark.vm, pytest.mark.long]

KERNEL, INITRD = "/tmp/kernel", "/tmp/initrd"
# Arguments: where the files that come are to be.
TAKE = r"""
import socket, sys
with socket.create_server(("", 4000)) as server:
    print("listens", flush=True)
    for path in sys.argv[1:]:
        taken, _ = server.accept()
        with open(path, "wb") as file:
            while data := taken.recv(1 << 20):
                file.write(data)
print("taken", flush=True)
"""
# Arguments: to whom, and the files.
GIVE = r"""
import socket, sys
for path in sys.argv[2:]:
    with socket.create_connection((sys.argv[1], 4000), timeout=60) as to:
        with open(path, "rb") as file:
            to.sendfile(file)
"""
# Arguments: kernel, initrd, words, flags.
LOAD = r"""
import ctypes, os, sys
KEXEC_FILE_LOAD = 320
kernel, initrd, line, flags = sys.argv[1:]
files = [os.open(path, os.O_RDONLY) for path in (kernel, initrd)]
words = line.encode() + b"\0"
libc = ctypes.CDLL(None, use_errno=True)
numbers = map(ctypes.c_ulong, (*files, len(words)))
if libc.syscall(KEXEC_FILE_LOAD, *numbers, words, ctypes.c_ulong(int(flags, 0))):
    sys.exit(os.strerror(ctypes.get_errno()))
"""
# After a pause, so that the answer to the command comes first.
START = r"""
import ctypes, time
REBOOT, MAGIC, MAGIC2, KEXEC = 169, 0xFEE1DEAD, 672274793, 0x45584543
time.sleep(0.5)
ctypes.CDLL(None).syscall(REBOOT, *map(ctypes.c_ulong, (MAGIC, MAGIC2, KEXEC)), 0)
"""
NO_CMA = "0x10"
"""KEXEC_FILE_NO_CMA: earlier kernels do not know it."""


@contextmanager
def before(logs: Path) -> Iterator[Link]:
    """A confined master with secrets, which has the files of the next kernel."""
    with confined.linked(logs, addons=[addons.KEXEC]) as link:
        link.master.put("/tmp/take.py", TAKE.encode())
        job = link.master.spawn(["python3", "/tmp/take.py", KERNEL, INITRD])
        job.wait_said("listens")
        # A kernel as Debian has it: QEMU has started the unpacked one.
        files = [
            tiny_guest.build(confined.KERNEL).kernel,
            image.build((), confined.KERNEL, addons=[addons.KEXEC]).initrd,
        ]
        argv = [sys.executable, "-c", GIVE, MASTER_ADDRESS, *map(str, files)]
        link.slave.run(shlex.join(argv), timeout=120)
        job.wait_said("taken")
        keep_secrets(link.master)
        assert found(link) == dict.fromkeys(secrets(link.master), 0)
        assert "kexec" not in link.check()
        yield link


def words(link: Link) -> str:
    """Return the words of the master's kernel, which the next one is to have too."""
    return link.master.run("cat /proc/cmdline").stdout.strip()


def load(link: Link, flags: str) -> None:
    """Load the next kernel by kexec_file_load()."""
    link.master.put("/tmp/load.py", LOAD.encode())
    argv = ["python3", "/tmp/load.py", KERNEL, INITRD, words(link), flags]
    link.master.run(argv, timeout=60)


def start(link: Link) -> None:
    """Start the kernel that is loaded, and wait until it takes commands."""
    link.master.spawn(["python3", "-c", START])
    link.master.wait_rebooted()


def found(link: Link) -> dict[str, int]:
    """Return how often each secret is in the window."""
    return confined.search(link.window, secrets(link.master)).times


def assert_next_is_confined(link: Link) -> None:
    start(link)
    confined.wait_packets(link)
    pings = traffic.ping(link.master, SLAVE_ADDRESS)
    pings += traffic.ping(link.slave, MASTER_ADDRESS)
    assert pings.received == pings.sent >= 20
    keep_secrets(link.master)
    assert found(link) == dict.fromkeys(secrets(link.master), 0)
    assert link.check() == {}


def test_next_kernel_is_confined_if_kexec_load_has_loaded_it(here: Path) -> None:
    with before(here) as link:
        argv = ["kexec", "-c", "-l", KERNEL, f"--initrd={INITRD}"]
        link.master.run([*argv, f"--command-line={words(link)}"], timeout=60)
        assert found(link) == dict.fromkeys(secrets(link.master), 0)
        assert_next_is_confined(link)


def test_next_kernel_is_confined_if_none_of_it_may_be_in_a_cma_area(here: Path) -> None:
    with before(here) as link:
        load(link, NO_CMA)
        assert found(link) == dict.fromkeys(secrets(link.master), 0)
        assert_next_is_confined(link)


def test_kexec_file_load_puts_a_part_of_the_next_kernel_into_the_region(
    here: Path,
) -> None:
    """The slave could change it.  If this fails, docs/confined.md is to say so."""
    with before(here) as link:
        load(link, "0")
        assert found(link)[LINE] > 0
        assert "kexec" in link.check()
        # The next kernel keeps what it was given, so the ring area is not free.
        start(link)
        assert_no_packet_crosses(link)
        has_rings_elsewhere(link)
        assert found(link)[LINE] > 0
        region = link.master.pages(link.shared_region())
        assert region.kinds["free"] > 15 * MIB // PAGE
