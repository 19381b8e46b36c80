# SPDX-License-Identifier: Apache-2.0
"""What `doctor` may look at on a machine: files, processes, and what programs print.

A check gets a `Machine` and asks nothing else, so that the tests give it a machine with
any fault.  All methods only read.
"""

import os
import platform
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .findings import CannotLook

PROGRAM_TIME = 20.0
"""Seconds that a program may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """What lies at a path; a symbolic link counts as the file that it leads to."""

    inode: tuple[int, int]
    """The numbers of its file system and of its inode."""
    uid: int
    gid: int
    mode: int
    """Its kind and its access bits, as in stat(2)."""
    allocated: int = 0
    """Bytes that have memory or a disk behind them."""

    @property
    def access(self) -> int:
        """The access bits alone."""
        return stat.S_IMODE(self.mode)


@dataclass(frozen=True, slots=True)
class Output:
    """What a program has printed, and its exit status."""

    status: int
    out: str
    error: str = ""


class Machine:
    """The machine on which we run, or one whose files lie below another root.

    The methods that look at a path raise OSError, as the system call does.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.user = os.geteuid()
        """The user who asks."""

    @property
    def architecture(self) -> str:
        """What `uname -m` prints."""
        return platform.machine()

    @property
    def release(self) -> str:
        """What `uname -r` prints."""
        return platform.release()

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def text(self, path: str) -> str:
        """Return the text of a file; bytes that are no UTF-8 are replaced."""
        return self._at(path).read_text(encoding="utf-8", errors="replace")

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(os.listdir(self._at(path)))

    def link(self, path: str) -> str:
        """Return where a symbolic link leads."""
        return os.readlink(self._at(path))

    def info(self, path: str) -> FileInfo:
        """Return what lies at a path."""
        found = self._at(path).stat()
        return FileInfo(
            inode=(found.st_dev, found.st_ino),
            uid=found.st_uid,
            gid=found.st_gid,
            mode=found.st_mode,
            # st_blocks counts 512 bytes, whatever the file system's own block is.
            allocated=found.st_blocks * 512,
        )

    def free(self, path: str) -> int:
        """Return the bytes that the file system of a path can still give."""
        found = os.statvfs(self._at(path))
        return found.f_bavail * found.f_frsize

    def run(self, *command: str) -> Output:
        """Run a program to its end.

        Raises:
            CannotLook: it is not there, or takes too long.
        """
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROGRAM_TIME,
                # Its words are compared: they must not be translated.
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise CannotLook(f"there is no program {command[0]}") from None
        except OSError as error:
            raise CannotLook(f"{command[0]}: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise CannotLook(
                f"{' '.join(command)} takes longer than {PROGRAM_TIME:g} s"
            ) from None
        return Output(done.returncode, done.stdout, done.stderr)

    # Made of the above.

    def text_if_there(self, path: str) -> str | None:
        """Return the text of a file; None if there is none."""
        try:
            return self.text(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names_if_there(self, path: str) -> list[str]:
        """Return the names in a directory; none if there is no directory."""
        try:
            return self.names(path)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def info_if_there(self, path: str) -> FileInfo | None:
        """Return what lies at a path; None if nothing does."""
        try:
            return self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str) -> bool:
        """Whether anything lies at a path."""
        return self.info_if_there(path) is not None

    def limit(self, pid: int, name: str) -> int | None:
        """Return a process's soft limit by its name in /proc; None: unlimited.

        Raises:
            CannotLook: the kernel has no such limit.
        """
        for line in self.text(f"/proc/{pid}/limits").splitlines():
            if line.startswith(f"{name} "):
                soft = line.removeprefix(name).split()[0]
                return None if soft == "unlimited" else int(soft)
        raise CannotLook(f"/proc/{pid}/limits has no line {name!r}")
