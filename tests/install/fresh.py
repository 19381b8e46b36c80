# SPDX-License-Identifier: Apache-2.0
"""A machine on which Debian has just been installed, and nothing else.

    with machine("trixie", tmp_path) as new:
        new.run("apt install python3-venv")

debootstrap's smallest system, made once a week and kept in the cache.  What is written
to a copy goes to memory, and is forgotten.
"""

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.vm import suites
from tests.vm.cache import cache_dir, discard_old, one_at_a_time
from tests.vm.cache import fresh as fresh_entry
from tests.vm.image import CHECKOUT
from tools.wheels import NOT_SOURCE

log = logging.getLogger(__name__)

RELEASES = {12: "bookworm", 13: "trixie"}

NEXT = "testing"
"""What will be the next release: another Python, another C library."""

FOLDERS = ("shared", "host", "guest", "tools")
"""The folders of a checkout that most of its commands need."""

BUILD_FILES = ("Makefile", "pyproject.toml", "tox.ini", "toxfile.py")
"""What a checkout has beside its folders, for `make`."""

WEEK = 7 * 24 * 3600

SOURCES = Path("/root/vhostpci")
"""Where the checkout is in the machine."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""What this machine trusts."""

SETTINGS = """\
APT::Get::Assume-Yes "true";
Dpkg::Use-Pty "false";
Acquire::https::CaInfo "/etc/trusted.crt";
Acquire::Check-Valid-Until "false";
Binary::apt::APT::Keep-Downloaded-Packages "true";
"""
"""A user says yes when apt asks.  A mirror may be some weeks behind Debian testing."""

# No mount of it is seen outside, and all end with this shell, which ends at the end of
# its input.  $0 is the directory to work in, $1 the base, $2 where packages are kept.
# APT writes elsewhere, since it takes a lock there, and other machines may run beside.
MOUNTS = """
mount -t tmpfs vhostpci "$0"
mkdir "$0/upper" "$0/work" "$0/root" "$0/archives" "$0/archives-work"
mount -t overlay -o "lowerdir=$1,upperdir=$0/upper,workdir=$0/work" vhostpci "$0/root"
for name in /dev /proc /sys; do mount --rbind "$name" "$0/root$name"; done
mount -t tmpfs vhostpci "$0/root/run"
mount -t tmpfs -o mode=1777 vhostpci "$0/root/dev/shm"
mount -t overlay -o "lowerdir=$2,upperdir=$0/archives,workdir=$0/archives-work" \
    vhostpci "$0/root/var/cache/apt/archives"
mkdir -p "$0/root$4"
cp -r "$3/." "$0/root$4"
echo ready
read -r end
"""


@one_at_a_time("fresh.lock")
def base(codename: str) -> Path:
    """The root directory of a new system, from the cache if it is of this week."""
    week = int(time.time() // WEEK)
    root = cache_dir() / "fresh" / f"{codename}-{week}"
    if not root.exists():
        log.info("installing the smallest Debian %s, 60 MB", codename)
        with fresh_entry(root) as path:
            _debootstrap(codename, path)
        discard_old(root.parent.glob(f"{codename}-*"), keep=1)
    return root


def packages(codename: str) -> Path:
    """Where APT keeps the packages that it downloads for such machines."""
    directory = cache_dir() / "archives" / codename
    (directory / "partial").mkdir(parents=True, exist_ok=True)
    return directory


def _debootstrap(codename: str, root: Path) -> None:
    done = subprocess.run(
        [
            *("debootstrap", "--variant=minbase"),
            f"--cache-dir={packages(codename)}",
            *(codename, str(root), suites.site()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"debootstrap {codename} failed:\n{done.stdout[-2000:]}")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, root / "etc/trusted.crt")


def environment() -> dict[str, str]:
    """A login of root's, and what this machine needs to reach PyPI and Debian."""
    passed = ("PIP_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    found = {name: text for name, text in os.environ.items() if name.startswith(passed)}
    # Directories of this machine's, which the other one does not have.
    found.pop("PIP_FIND_LINKS", None)
    if CERTIFICATES.exists():
        found["PIP_CERT"] = "/etc/trusted.crt"
    return found | {
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


class FreshMachine:
    """A machine with a checkout of ours, where commands run one after the other."""

    def __init__(self, root: Path, process: int) -> None:
        # As that process sees it, in whose namespace alone it is mounted.
        self._root = Path(f"/proc/{process}/root{root}")
        self._mounts = ["nsenter", "--mount", "--target", str(process)]
        self._place = root
        self._enter = [*self._mounts, "chroot", str(root), "env", "-C", str(SOURCES)]
        self._enter += ["bash", "-ec"]

    def path(self, path: Path) -> Path:
        """Return where a file of the machine is for us."""
        return self._root / path.relative_to("/")

    def command(self, script: str, *arguments: str) -> list[str]:
        """Return a command that runs shell text there, with ``$1`` and so on."""
        return [*self._enter, script, "bash", *arguments]

    def share(self, directory: Path) -> None:
        """Let the machine have a directory of ours, by the same path."""
        self._mount(
            f'mkdir -p "$0{directory}"; mount --bind {directory} "$0{directory}"'
        )

    def make_disk(self, file: Path, size: str) -> None:
        """Write all files of the machine to a new disk, but the checkout of ours."""
        # A bind mount has nothing of what is mounted below: devices, packages.
        self._mount(
            f'rm -rf "$0{SOURCES}"/*; cd "$0/.."; '
            "mkdir plain; mount --bind root plain; "
            f"mke2fs -q -t ext4 -d plain {file} {size}; umount plain"
        )

    def keep_packages(self, directory: Path) -> None:
        """Copy to a directory the packages that APT has downloaded."""
        for file in (self._root.parent / "archives").glob("*.deb"):
            if file.is_file() and not (directory / file.name).exists():
                with fresh_entry(directory / file.name) as path:
                    shutil.copy(file, path)

    def _mount(self, script: str) -> None:
        """Run shell text in the machine's namespace, outside of its root ($0)."""
        subprocess.run(
            [*self._mounts, "sh", "-ec", script, str(self._place)],
            check=True,
            timeout=300,
        )

    def run(self, command: str) -> str:
        """Run shell text; returns what it wrote, and fails with that."""
        done = self.attempt(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run shell text that may fail."""
        return subprocess.run(
            [*self._enter, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            env=environment(),
        )

    @contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """Let a program run while the block does, and end it as Ctrl-C would."""
        process = subprocess.Popen(
            [*self._enter, f"exec {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()


@contextmanager
def machine(
    codename: str, place: Path, folders: Sequence[str] = FOLDERS
) -> Iterator[FreshMachine]:
    """A machine whose files lie below ``place`` as long as the block runs.

    Args:
        codename: the release of Debian.
        place: an empty directory.
        folders: what of the checkout is there.
    """
    sources = place / "sources"
    for name in folders:
        shutil.copytree(
            CHECKOUT / name, sources / name, ignore=NOT_SOURCE, symlinks=True
        )
    for name in BUILD_FILES:
        shutil.copy(CHECKOUT / name, sources)
    files = place / "machine"
    files.mkdir()
    with subprocess.Popen(
        [
            *("unshare", "--mount", "sh", "-ec", MOUNTS, str(files)),
            *(str(base(codename)), str(packages(codename)), str(sources), str(SOURCES)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no copy of Debian {codename} could be mounted")
        found = FreshMachine(files / "root", process.pid)
        found.path(Path("/etc/apt/apt.conf.d/99vhostpci")).write_text(SETTINGS)
        found.run("apt-get update -q")
        yield found
        found.keep_packages(packages(codename))
