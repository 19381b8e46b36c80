# SPDX-License-Identifier: Apache-2.0
"""The arena's file: made, or taken over from a daemon that has ended.

Theory of operation.  A daemon leaves its arena behind when it is killed, and when a
master has had the arena as its RAM.  Its successor must use that very file again, or
the running master loses its network.  But another user, or a QEMU that was started too
early, may have put a file there as well.  So what lies there is looked at first:

    there is          and no program has it open   and a program has it open
    ---------------   --------------------------   -------------------------
    an arena          used again                   used again
    another size      replaced by a new one        refused
    nothing in it     used as a new one            refused
    anything else     refused                      refused

"An arena" is a regular file of ours or root's, with no other name, with no wider mode
than we give it, and with our metadata in it.  A file that is refused stays as it is.
For a confined device an arena of one that was not is like another size: all memory of a
master may still be in it.

The file is locked while its daemon lives.
"""

import errno
import fcntl
import logging
import os
import signal
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vhostpci_shared import metadata as md

from ..errors import HostError, explain
from ..fds import Fd
from ..keeper.slots import StateError
from .process_maps import users_of

log = logging.getLogger(__name__)

_OPEN_TRIES = 8
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ArenaFile:
    """The arena's file, open for reading and writing, and locked."""

    file: Fd
    is_new: bool
    """Whether it was made now, so that no VM can have it."""


def open_arena(path: Path, size: int, access: int, shared: int = 0) -> ArenaFile:
    """Make the arena, or take over the one that is there.

    Args:
        path: where it is.
        size: how many bytes it has to have.
        access: its file mode.
        shared: bytes of a confined device's shared region; 0: it is not confined.

    Raises:
        HostError: another daemon has it, or what is there is not to be trusted.
    """
    for _ in range(_OPEN_TRIES):
        with ExitStack() as undo:
            file, made = _open(path)
            undo.enter_context(file)
            _lock(path, file)
            # Another daemon may have replaced it between our open() and our lock.
            if not names(path, file):
                continue
            if made or _take_over(path, file, size, access, shared):
                is_new = made or not os.fstat(file.fileno()).st_size
                _set_size(path, file, size)
                undo.pop_all()
                return ArenaFile(file, is_new)
    raise HostError(
        f"arena {path} keeps being replaced by another process", code="H119"
    )


def remove_left_behind(path: Path, access: int) -> None:
    """Remove an arena that no daemon serves; leave anything else where it is.

    Raises:
        HostError: something else is there, or another daemon has it.
    """
    if not path.exists():
        return
    with _open_existing(path) as file:
        _lock(path, file)
        info = os.fstat(file.fileno())
        _check_trust(path, info, access)
        if not _has_magic(file, info.st_size):
            raise HostError(
                f"{path} is no arena of ours, and stays: it has no vhostpci metadata; "
                "remove it yourself if it is not needed",
                code="H120",
            )
        if names(path, file):
            path.unlink()


def names(path: Path, file: Fd) -> bool:
    """Whether `path` still names the file that we have open."""
    try:
        # System calls: lstat.
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except OSError:
        return False


def lost_name(path: Path, file: Fd) -> bool:
    """Whether it is certain that `path` does not name the file any more."""
    # Once a second for each device: hence os.lstat(), and only one look.
    try:
        return not os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # we may not look at present, which says nothing of the file


def link_again(path: Path, file: Fd) -> bool:
    """Give the file its name back; return whether that was possible.

    The kernel makes a name for a file that still has another one (it was moved), but
    not for a file whose last name was removed.
    """
    directory = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with Fd(directory):
        try:
            # With a directory given, Python calls linkat(), which can follow the link
            # in /proc; link() cannot.  It never replaces a file that is there.
            # System calls: link.
            os.link(
                str(file.fileno()), path, src_dir_fd=directory, follow_symlinks=True
            )
        except OSError:
            return False
    return True


def check_left(path: Path, file: Fd, size: int) -> None:
    """Check that a file that a daemon before us has left is the arena at `path`.

    Raises:
        StateError: it is not.
    """
    info = os.fstat(file.fileno())
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        raise StateError(f"the arena has {info.st_size} bytes, not {size}")
    if not names(path, file):
        raise StateError(f"the arena is not {path} any more")
    if not _has_magic(file, size):
        raise StateError(f"the arena {path} has no metadata")
    _lock(path, file)


def unlock(file: Fd) -> None:
    """Let another daemon have the arena."""
    # System calls: flock.
    fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def reopen(file: Fd) -> Fd:
    """Open the same file once more, as a separate open file."""
    path = f"/proc/self/fd/{file.fileno()}"
    return Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def reserve(path: Path, file: Fd, offset: int, length: int) -> None:
    """Take memory for a range of the file now; what is in it stays.

    A store to a page that has no memory yet is a SIGBUS when none is left.

    Raises:
        HostError: there is no space left.
    """
    try:
        # System calls: fallocate.
        os.posix_fallocate(file.fileno(), offset, length)
    except OSError as error:
        raise no_space(path, error) or explain("reserve", path, error) from error


def no_space(path: Path, error: OSError) -> HostError | None:
    """Return what to say if `error` means that the file system is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return HostError(
        f"no space left in {path.parent}, for {path.name}: remove what fills it (df "
        f"{path.parent}), enlarge it (mount -o remount,size=; vm.nr_hugepages for huge "
        "pages), or choose another --memory-dir",
        code="H121",
    )


def _open(path: Path) -> tuple[Fd, bool]:
    """Open what is there, or make it; say whether we have made it."""
    try:
        try:
            return Fd(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)), True
        except FileExistsError:
            return _open_existing(path), False
    except OSError as error:
        raise no_space(path, error) or explain("open arena", path, error) from error


def _open_existing(path: Path) -> Fd:
    try:
        _check_regular(path, path.lstat())
        # O_NONBLOCK: a FIFO may have come into its place since.
        return Fd(os.open(path, _FLAGS | os.O_NONBLOCK))
    except OSError as error:
        raise explain("open arena", path, error) from error


def _check_regular(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise HostError(f"arena {path} is no regular file: move it away", code="H122")


def _lock(path: Path, file: Fd) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise HostError(
            f"arena {path} is in use by another vhostpci-host: stop it, or choose "
            "another name or --memory-dir",
            code="H123",
        ) from None


def _set_size(path: Path, file: Fd, size: int) -> None:
    try:
        # System calls: ftruncate.
        os.ftruncate(file.fileno(), size)
    except OSError as error:
        path.unlink()
        raise explain(f"make {size >> 20} MiB of", path, error) from error


def _take_over(path: Path, file: Fd, size: int, access: int, shared: int) -> bool:
    """Decide about a file that was there; return whether to use it.

    One of an earlier daemon that we cannot use is removed, and False is returned.  One
    that has nothing in it is returned empty.
    """
    info = os.fstat(file.fileno())
    _check_trust(path, info, access)
    fits = info.st_size == size and _has_magic(file, size)
    if fits and shared and _shared(file, size) != shared:
        _check_unused(path, file, "it may have all memory of a master in it")
        log.info("arena %s was no confined device's; making a new one", path)
        path.unlink()
        return False
    if fits:
        log.info("arena %s was left behind, and is used again", path)
        return True
    if not info.st_blocks:
        # A daemon that was killed before it had written anything; or a QEMU that was
        # started before the daemon, a moment ago.
        _check_unused(path, file, "no daemon has made it: start the daemon first")
        os.ftruncate(file.fileno(), 0)
        return True
    # A master whose RAM is larger than the device's has lengthened its arena.
    if not any(
        _has_magic(file, end) for end in (info.st_size, min(size, info.st_size))
    ):
        raise HostError(
            f"{path} is no arena of ours, as it has no vhostpci metadata (it is used "
            f"by {_users(path)}): remove it, or choose another name or --memory-dir",
            code="H124",
        )
    there = f"it has {info.st_size >> 20} MiB, and this --memory takes {size >> 20} MiB"
    _check_unused(path, file, there)
    log.info("arena %s was left behind with another size; making a new one", path)
    path.unlink()
    return False


def _check_unused(path: Path, file: Fd, why: str) -> None:
    if _is_used(file):
        raise HostError(
            f"{path} cannot be the arena, since {why}; and it cannot be replaced, "
            f"since it is used by {_users(path)}: end that program, and remove the "
            "file, or choose another name or --memory-dir",
            code="H125",
        )


def _check_trust(path: Path, info: os.stat_result, access: int) -> None:
    """Refuse a file that another user has made, or may have open."""
    _check_regular(path, info)
    if info.st_uid not in (0, os.geteuid()):
        raise HostError(
            f"{path} belongs to uid {info.st_uid}, who would have the master's memory: "
            "remove it, and use a directory in which only the daemon's user may make "
            "files (--memory-dir)",
            code="H126",
        )
    if info.st_nlink != 1:
        raise HostError(
            f"{path} has {info.st_nlink} names, so it may be a file of another kind: "
            "remove this name, or choose another --memory-dir",
            code="H127",
        )
    if wider := stat.S_IMODE(info.st_mode) & ~access:
        raise HostError(
            f"{path} has mode {stat.S_IMODE(info.st_mode):04o}, which is wider than "
            f"{access:04o} (by {wider:04o}), so users who shall not may have it open: "
            "give the device the --socket-mode or --socket-group that it had, or end "
            "its VMs and remove the file",
            code="H128",
        )


def _has_magic(file: Fd, end: int) -> bool:
    """Whether our metadata ends at offset `end` of the file."""
    if end < md.SIZE:
        return False
    return os.pread(file.fileno(), len(md.MAGIC), end - md.SIZE) == md.MAGIC


def _shared(file: Fd, end: int) -> int:
    """Return the size of the shared region, as the metadata says; 0: none is said."""
    size = md.Confined.layout.size
    data = os.pread(file.fileno(), size, end - md.SIZE + md.CONFINED)
    return md.Confined.parse(data).shared if len(data) == size else 0


def _is_used(file: Fd) -> bool:
    """Whether another process has the file open, or maps it.

    `file` must be the only descriptor of it in this process.
    """
    # The kernel grants a write lease only if no other process has the file open
    # (fcntl(2)).  A process that opens it meanwhile makes the kernel signal us: by
    # SIGIO, which would end us, unless we choose one that is ignored.
    number = file.fileno()
    # System calls: fcntl(F_SETLEASE), fcntl(F_SETSIG).
    fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        # EAGAIN: it is used.  Anything else: there are no leases here, so it may be.
        return True
    fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _users(path: Path) -> str:
    """Return which processes have the file open."""
    return ", ".join(users_of(path)) or "no process that we may look at"
