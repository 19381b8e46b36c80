# SPDX-License-Identifier: Apache-2.0
"""A machine that systemd has booted, in namespaces of this one: it takes two seconds.

    with machine("trixie", tmp_path) as booted:
        booted.run("systemctl start vhostpci-host")

systemd is process 1 of a PID namespace, in the root of a cgroup namespace, with
Debian's packages as its file system.  What is written there goes to memory, and is
forgotten.  The packages of each release of Debian are in the cache, so one machine
tries the systemd of all of them.

It shares this machine's kernel, so nothing in it may change that: /proc/sys and /sys
are read-only, there is no network but lo, and of what systemd does at boot only the
journal, sysusers and tmpfiles are left.
"""

import errno
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm import chroot, suites, wheels
from tests.vm.harness import DIE_WITH_US
from tests.waiting import PROCESS_TIMEOUT, wait_for

PACKAGES: tuple[str, ...] = (
    "systemd",
    "dash",
    "coreutils",
    "procps",
    "python3",
    "python3-cffi-backend",
)
PACKAGES += ("python3-pyroute2", "python3-pyudev", "libudev1")

PROGRAM = """\
#!/usr/bin/python3 -P
import sys
from vhostpci_{side}.cli.main import main
sys.exit(main())
"""
"""What pip makes of an entry point, but for the path of the interpreter."""

FILES = {
    "/etc/machine-id": "76686f73747063690000000000000001\n",
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:::\n",
    "/etc/group": "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n",
    "/usr/bin/vhostpci-host": PROGRAM.format(side="host"),
    "/usr/bin/vhostpci-guest": PROGRAM.format(side="guest"),
    "/usr/lib/python3/dist-packages/vhostpci.pth": "/srv/host\n/srv/guest\n",
}

# No mount of it is seen outside, and all end with process 1.  $0 is the directory to
# work in, $1 the base, $2 and $3 our packages, $4 more files.  pivot_root, and not
# chroot alone: in a chroot systemd cannot make the file system of a service.
NAMESPACE = """
mount --make-rprivate /
mount -t tmpfs vhostpci "$0"
mkdir "$0/upper" "$0/work" "$0/root"
mount -t overlay -o "lowerdir=$1,upperdir=$0/upper,workdir=$0/work" vhostpci "$0/root"
cd "$0/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mkdir -p sys run tmp old dev
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir dev/shm dev/pts dev/net
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for name in full net/tun null random tty urandom zero; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ln -s /proc/self/fd dev/fd
mkdir -p srv
cp -r "$2" srv/host
cp -r "$3" srv/guest
cp -r "$4/." .
chroot . python3 -m compileall -q /srv
find usr/lib/systemd/system/*.wants -type l ! -name 'systemd-journald*' \
    ! -name systemd-sysusers.service ! -name 'systemd-tmpfiles-setup*' -delete
pivot_root . old
exec chroot . sh -c 'umount -l /old; exec env -i container=vhostpci \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd --unit=basic.target --show-status=no --log-target=journal'
"""


class Machine:
    """The booted machine.

    Args:
        process: its process 1, as this machine sees it.
    """

    def __init__(self, process: int) -> None:
        self.root = Path(f"/proc/{process}/root")
        self._enter = ["nsenter", "--target", str(process), "--mount", "--pid"]
        self._enter += ["--net", "--cgroup", "--ipc", "--uts", "--root", "--wd"]

    def path(self, path: str) -> Path:
        """Return where a file of the machine is for us."""
        return self.root / path.lstrip("/")

    def command(self, *argv: str) -> list[str]:
        """Return the command by which a command runs there."""
        return [*self._enter, *argv]

    def attempt(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            self.command(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PROCESS_TIMEOUT,
            env={"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8"},
        )

    def run(self, *argv: str) -> str:
        """Run a command to its end; return what it wrote."""
        done = self.attempt(*argv)
        assert done.returncode == 0, f"{argv}\n{done.stdout}\n{self.journal()}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine's."""
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit's."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def wait_shown(self, unit: str, name: str, value: str) -> None:
        """Wait until a unit's property has this value."""
        wait_for(
            lambda: self.show(unit, name) == value,
            lambda: f"{name}={self.show(unit, name)}\n{self.journal()}",
        )

    def journal(self, *options: str) -> str:
        """Return the lines of the log, without what stands before them."""
        return self.attempt("journalctl", "--no-pager", "-o", "cat", *options).stdout


def base(codename: str) -> Path:
    """Return the machine's file system before its first boot, from the cache."""
    return chroot.make(PACKAGES, suites.archive(codename))


@contextmanager
def machine(
    codename: str, files: Mapping[str, str], root: Path | None = None
) -> Iterator[Machine]:
    """Boot a machine of a Debian release; it ends with the block.

    Args:
        codename: the release's.
        files: what is there beside Debian's packages, and ours, by path.
        root: a file system in which our packages are installed, in place of Debian's
            packages and what is in `FILES`.
    """
    with TemporaryDirectory(prefix="vhostpci-") as name:
        place = Path(name)
        for path in ("mounts", "files"):
            (place / path).mkdir()
        for path, text in {**({} if root else FILES), **files}.items():
            _write(place / "files" / path.lstrip("/"), text)
        with _cgroup(place.name) as group, (place / "log").open("w+") as log:
            argv = [*DIE_WITH_US, "sh", "-ec", 'echo $$ >"$0/cgroup.procs"; exec "$@"']
            argv += [str(group), "unshare", "--mount", "--pid", "--fork"]
            argv += ["--kill-child", "--cgroup", "--ipc", "--uts", "--net"]
            argv += ["sh", "-ec", NAMESPACE, str(place / "mounts")]
            ours = [wheels.host_packages(), wheels.guest_packages(), place / "files"]
            with subprocess.Popen(
                [*argv, *map(str, (root or base(codename), *ours))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            ) as process:
                try:
                    yield _booted(process, place / "log")
                finally:
                    process.kill()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if text.startswith("#!") else 0o644)


def _booted(process: subprocess.Popen[bytes], log: Path) -> Machine:
    """Wait until systemd takes commands."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def find() -> Machine | None:
        assert process.poll() is None, f"it does not boot:\n{log.read_text()}"
        child = children.read_text().split() if children.exists() else []
        found = Machine(int(child[0])) if child else None
        command = ("systemctl", "is-active", "basic.target")
        return found if found and not found.attempt(*command).returncode else None

    deadline = time.monotonic() + PROCESS_TIMEOUT
    while (found := find()) is None:
        assert time.monotonic() < deadline, f"it does not boot:\n{log.read_text()}"
        time.sleep(0.1)
    return found


@contextmanager
def _cgroup(name: str) -> Iterator[Path]:
    """Make a cgroup, below which systemd makes those of its services."""
    mounts = [
        line.split() for line in Path("/proc/self/mounts").read_text().splitlines()
    ]
    top = next((where for _, where, kind, *_ in mounts if kind == "cgroup2"), None)
    assert top, "no file system cgroup2 is mounted here, and systemd needs it"
    group = Path(top) / name
    group.mkdir()
    try:
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a cgroup and those below it, when their last processes have ended."""
    groups = [path.parent for path in group.rglob("cgroup.procs")]
    for path in sorted(groups, key=lambda path: -len(path.parts)):
        wait_for(partial(_is_removed, path), f"no process in {path}")


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        # A process that is about to end is in it, and no longer in the list.
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
