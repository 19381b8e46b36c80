# SPDX-License-Identifier: Apache-2.0
"""Another user of the hypervisor: what it may not do to the daemon and its files.

One process without any privilege tries everything, for each test; the two directories
and all above them are open to it, so that only the files' own modes can stop it.
"""

import grp
import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import Lab
from tests.process.program import run

pytestmark = pytest.mark.process

USER = 61209
GROUP = "audio"
"""A group that each Debian has, and no other test uses."""

TRIES = """
import ctypes, json, mmap, os, signal, socket, sys
run_dir, memory_dir = sys.argv[1:3]
pid, keeper = map(int, sys.argv[3:])
arena = memory_dir + "/net0"
libc = ctypes.CDLL(None, use_errno=True)

def connect(name):
    with socket.socket(socket.AF_UNIX) as ours:
        ours.settimeout(60)
        ours.connect(f"{run_dir}/{name}")

def map_arena():
    with open(arena, "r+b") as file:
        mmap.mmap(file.fileno(), 4096)[0] = 0

def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def trace():
    call(libc.ptrace, 0x4206, pid, 0, 0)  # PTRACE_SEIZE

def take_descriptor():
    fd = os.pidfd_open(pid)
    call(libc.syscall, 438, fd, 0, 0)  # pidfd_getfd

def write_over(path):
    with open(path, "w"):
        pass

TRIES = {
    "connect vhost-user": lambda: connect("net0.vhost-user"),
    "connect ivshmem": lambda: connect("net0.ivshmem"),
    "connect control": lambda: connect("net0.control"),
    "read arena": lambda: os.open(arena, os.O_RDONLY),
    "map arena": map_arena,
    "truncate arena": lambda: os.truncate(arena, 0),
    "remove arena": lambda: os.unlink(arena),
    "replace arena": lambda: os.rename(memory_dir + "/../own", arena),
    "chmod arena": lambda: os.chmod(arena, 0o666),
    "remove socket": lambda: os.unlink(run_dir + "/net0.vhost-user"),
    "chmod socket": lambda: os.chmod(run_dir + "/net0.control", 0o666),
    "file in memory dir": lambda: write_over(memory_dir + "/net1"),
    "symlink in memory dir": lambda: os.symlink("/etc/passwd", memory_dir + "/net1"),
    "link in memory dir": lambda: os.link(memory_dir + "/../own", memory_dir + "/net1"),
    "file in run dir": lambda: write_over(run_dir + "/net1.control"),
    "symlink in run dir": lambda: os.symlink("/etc/passwd", run_dir + "/net1.control"),
    "link in run dir": lambda: os.link(run_dir + "/../own", run_dir + "/net1.control"),
    "signal daemon": lambda: os.kill(pid, signal.SIGTERM),
    "signal keeper": lambda: os.kill(keeper, signal.SIGUSR2),
    "descriptors of the daemon": lambda: os.listdir(f"/proc/{pid}/fd"),
    "descriptors of the keeper": lambda: os.listdir(f"/proc/{keeper}/fd"),
    "memory of the daemon": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
    "take a descriptor": take_descriptor,
    "trace": trace,
}
done = []
for name, attempt in TRIES.items():
    try:
        attempt()
    except PermissionError:
        continue
    except OSError as error:
        name += f": {error}"
    done.append(name)
print(json.dumps(done))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that each user may look into."""
    with TemporaryDirectory(prefix="vhostpci-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def open_lab(place: Path) -> Iterator[Lab]:
    """A lab whose directories each user may look into."""
    memory = TemporaryDirectory(prefix="vhostpci-", dir="/dev/shm")
    with private_network(), Lab(place) as lab, memory as name:
        Path(name).chmod(0o755)
        lab.memory_dir = Path(name) / "memory"
        yield lab


def done_by(lab: Lab, *groups: int) -> set[str]:
    """Return what another user's process can do."""
    for directory in (lab.run_dir, lab.memory_dir):
        own = directory.parent / "own"
        own.write_text("mine")
        os.chown(own, USER, USER)
    listed = ",".join(map(str, groups))
    more = [f"--groups={listed}"] if groups else ["--clear-groups"]
    tried = run(
        *("setpriv", f"--reuid={USER}", f"--regid={USER}", *more),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
        *("/usr/bin/python3", "-I", "-c", TRIES),
        *(str(lab.run_dir), str(lab.memory_dir)),
        *(str(lab.daemon.serving), str(lab.daemon.process.pid)),
    )
    assert tried.returncode == 0, tried.stderr
    return set(json.loads(tried.stdout))


def test_other_user_can_do_nothing(open_lab: Lab) -> None:
    open_lab.start_daemon()
    assert done_by(open_lab) == set()
    assert open_lab.status()["state"] == "no master"


def test_other_user_can_do_nothing_although_there_is_a_group(
    open_lab: Lab,
) -> None:
    open_lab.start_daemon("--socket-group", GROUP)
    assert done_by(open_lab) == set()


def test_member_of_the_group_has_sockets_and_memory_and_no_more(
    open_lab: Lab,
) -> None:
    """It may truncate the arena, too: no mode of a file forbids that alone."""
    open_lab.start_daemon("--socket-group", GROUP)
    assert done_by(open_lab, grp.getgrnam(GROUP).gr_gid) == {
        *("connect vhost-user", "connect ivshmem"),
        *("read arena", "map arena", "truncate arena"),
    }
    assert open_lab.daemon.process.poll() is None
