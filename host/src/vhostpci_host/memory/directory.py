# SPDX-License-Identifier: Apache-2.0
"""The directories of the sockets and of the arenas: made, and checked.

A user who may make files in such a directory could put another file into the place of a
socket or an arena, and would be given the master's memory.  What is checked here is
what another user could have prepared before the daemon started: a symbolic link, a
directory of that user's own, or one that everyone may write.
"""

import os
import stat
from pathlib import Path

from ..errors import HostError, explain


def make_directory(path: Path) -> None:
    """Make the directory unless it is there, and see that it is trustworthy.

    Raises:
        HostError: it cannot be made, or another user could replace the files in it.
    """
    try:
        # Before it is made, so that nothing is made where another user's link leads.
        _check_links(path)
        # System calls: mkdir.
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise explain("make", path, error) from error
    check_directory(path)


def check_directory(path: Path) -> None:
    """See that a directory is trustworthy.

    Raises:
        HostError: it is not there, or another user could replace the files in it.
    """
    try:
        _check_links(path)
        # Not lstat(): a link that is trustworthy may lead to another directory.
        info = path.stat()
    except OSError as error:
        raise explain("look at", path, error) from error
    _check_owner(path, info)
    _check_writers(path, info)


def _check_links(path: Path) -> None:
    """Refuse a symbolic link of another user's anywhere in the path."""
    for part in (*reversed(path.absolute().parents), path.absolute()):
        try:
            info = part.lstat()
        except FileNotFoundError:
            return  # neither it nor what is in it exists
        if stat.S_ISLNK(info.st_mode) and info.st_uid not in _trusted():
            raise HostError(
                f"directory {path}: {part} is a symbolic link of uid {info.st_uid}, "
                "who could lead us anywhere: remove it, or choose another directory",
                code="H133",
            )


def _check_owner(path: Path, info: os.stat_result) -> None:
    if info.st_uid not in _trusted():
        raise HostError(
            f"directory {path} belongs to uid {info.st_uid}, who could replace the "
            f"files in it: choose one of root's or of uid {os.geteuid()}",
            code="H134",
        )


def _check_writers(path: Path, info: os.stat_result) -> None:
    # In a directory with the sticky bit, such as /dev/shm itself, only the owner of a
    # file can replace it.  What lies there from before is checked file by file.
    if info.st_mode & stat.S_ISVTX:
        return
    # A group of one user's own is no other user (user private groups, umask 002).
    group = info.st_mode & stat.S_IWGRP and info.st_gid not in (0, os.getegid())
    if info.st_mode & stat.S_IWOTH or group:
        raise HostError(
            f"directory {path} has mode {stat.S_IMODE(info.st_mode):04o}, so that "
            "other users could replace the files in it: take their right to write "
            f"away (chmod go-w {path}), or choose another directory",
            code="H135",
        )


def _trusted() -> tuple[int, int]:
    """Return the users that can do as they like with our files in any case."""
    return 0, os.geteuid()
