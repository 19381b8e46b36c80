# SPDX-License-Identifier: Apache-2.0
"""File descriptors that know their owner.

A descriptor that came over a socket is wrapped at once.  The holder of the object
closes it; the collector warns of one that was forgotten (ResourceWarning).
"""

import errno
import fcntl
import os
import socket
import stat
import warnings
from typing import Protocol, Self

from vhostpci_shared.eventfd_signal import signal_eventfd
from vhostpci_shared.wire import ProtocolError


class Fd:
    """A descriptor, and the duty to close it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Return the number.

        Raises:
            ValueError: it is closed, or was given away by `detach`.
        """
        if self._number < 0:
            raise ValueError("descriptor is closed")
        return self._number

    @property
    def closed(self) -> bool:
        """Whether it is closed, or was given away by `detach`."""
        return self._number < 0

    def copy(self) -> "Fd":
        """Return another descriptor of the same open file, for another owner."""
        return Fd(os.dup(self.fileno()))

    def detach(self) -> int:
        """Return the number, and leave it to the caller to close it."""
        number, self._number = self.fileno(), -1
        return number

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._number >= 0:
            os.close(self.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._number >= 0:
            warnings.warn(f"unclosed descriptor {self._number}", ResourceWarning, 2)
            self.close()


class Notifier(Fd):
    """An eventfd, or what a front-end has in its place: a pipe, a pair of sockets.

    User Mode Linux calls a pair of sockets a pipe (`os_pipe` in Linux, arch/um).
    It may come back blocking from a QEMU that rejected it, because the flag belongs to
    the open file and not to our descriptor.  So neither a read nor a signal relies on
    the flag.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._is_eventfd: bool | None = None

    # System calls: eventfd2.
    @classmethod
    def new(cls) -> Self:
        """Make an eventfd."""
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    @classmethod
    def adopt(cls, fd: Fd) -> Self:
        """Take `fd` over.

        Anything else would end the slave's QEMU (KVM refuses it as an ioeventfd,
        and QEMU aborts), or cannot be waited for.

        Raises:
            ProtocolError: it is none of the three.
        """
        if not (_is_eventfd(fd) or _is_pipe(fd)):
            raise ProtocolError(
                "a notifier that is no eventfd, no pipe and no connected Unix socket",
                code="P027",
            )
        return cls(fd.detach())

    def dup(self) -> "Notifier":
        """Return another descriptor of it, for another owner."""
        return Notifier(os.dup(self.fileno()))

    @property
    def is_eventfd(self) -> bool:
        """Whether it is an eventfd, the only kind that a slave's QEMU takes."""
        if self._is_eventfd is None:
            self._is_eventfd = _is_eventfd(self)
        return self._is_eventfd

    @property
    def is_socket(self) -> bool:
        """Whether it is one of two sockets that serve as a pipe."""
        return stat.S_ISSOCK(os.fstat(self.fileno()).st_mode)

    @property
    def access(self) -> int:
        """O_RDONLY, O_WRONLY or O_RDWR: a pipe has an end for each of the first two."""
        return fcntl.fcntl(self.fileno(), fcntl.F_GETFL) & os.O_ACCMODE

    @property
    def eventfd_id(self) -> int | None:
        """The kernel's number for the eventfd, the same for all descriptors of it.

        None for a pipe, and where the kernel does not tell (before Linux 5.2).
        """
        return _eventfd_id(self.fileno())

    def signal(self) -> None:
        """Signal it once more; a full or abandoned one needs no signal."""
        if self.is_eventfd:
            signal_eventfd(self.fileno())
            return
        try:
            _write_now(self.fileno(), (1).to_bytes(8, "little"))
        except (BlockingIOError, ConnectionError):
            return

    def drain(self) -> bool:
        """Take all signals; say whether there were any.

        Raises:
            EOFError: no signal can come: the other end of a pipe is closed, or this
                is its writing end.
        """
        try:
            data = _read_now(self.fileno())
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise EOFError(f"the notifier's other end is gone: {error}") from error
        except OSError as error:
            # The writing end of a pipe, which a front-end may send as its kick.
            if error.errno != errno.EBADF:
                raise
            raise EOFError(f"the notifier cannot be read: {error}") from error
        if not data:
            raise EOFError("the notifier's other end is closed")
        return True


class HasNumber(Protocol):
    """A descriptor's owner: an `Fd`, or a socket."""

    def fileno(self) -> int:
        """Return the descriptor's number."""
        ...


def identity(fd: HasNumber) -> tuple[int, int, int]:
    """Return numbers that are the same for all descriptors of one open file.

    For a file on disk or in memory they are the same for all open files of it, too.
    """
    number = fd.fileno()
    if (eventfd := _eventfd_id(number)) is not None:
        return -1, eventfd, 0
    info = os.fstat(number)
    # The two ends of a pipe are one file.
    access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    return info.st_dev, info.st_ino, access


def _eventfd_id(number: int) -> int | None:
    with open(f"/proc/self/fdinfo/{number}", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "eventfd-id":
                return int(value)
    return None


# System calls: preadv2, socket(AF_UNIX).
def _read_now(number: int) -> bytes:
    """Read what is there, without waiting.

    Not by O_NONBLOCK: another process that has the same open file may clear that flag,
    and take the signals, between our look and our read.

    Raises:
        BlockingIOError: there is nothing to read.
    """
    data = bytearray(4096)
    try:
        size = os.preadv(number, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        # An eventfd before Linux 5.8, a pipe before 6.5.
        if error.errno != errno.EOPNOTSUPP:
            raise
        os.set_blocking(number, False)
        return os.read(number, len(data))
    return bytes(data[:size])


# System calls: pwritev2.
def _write_now(number: int, data: bytes) -> None:
    """Write into a pipe or a socket, without waiting; see `_read_now`.

    Raises:
        BlockingIOError: there is no room.
    """
    try:
        os.pwritev(number, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        # A pipe or a socket before Linux 6.5.
        if error.errno != errno.EOPNOTSUPP:
            raise
        os.set_blocking(number, False)
        os.write(number, data)


def _is_eventfd(fd: Fd) -> bool:
    return os.readlink(f"/proc/self/fd/{fd.fileno()}") == "anon_inode:[eventfd]"


def _is_pipe(fd: Fd) -> bool:
    """Whether it is a pipe's end, or one of two sockets that serve as a pipe."""
    # The kernel gives these names, and all names of files begin with "/".  fstat()
    # would tell, too, but for a file on FUSE or NFS it may never return.
    name = os.readlink(f"/proc/self/fd/{fd.fileno()}")
    return name.startswith("pipe:[") or (
        name.startswith("socket:[") and _is_connected(fd)
    )


def _is_connected(fd: Fd) -> bool:
    """Whether a socket is a connected Unix stream socket."""
    with socket.socket(fileno=os.dup(fd.fileno())) as ours:
        if (ours.family, ours.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            return False
        try:
            ours.getpeername()
        except OSError:
            return False
        return True


def file_number(fd: Fd) -> dict[str, int]:
    """Return which file a descriptor is of, as JSON, for who looks for that file."""
    found = os.fstat(fd.fileno())
    return {"device": found.st_dev, "inode": found.st_ino}
