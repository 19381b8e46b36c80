# SPDX-License-Identifier: Apache-2.0
"""The descriptors that the keeper keeps for this daemon and its successor.

The keeper is systemd, or our own parent process (`process.py`); both have the same
texts and the same environment variables.  It keeps one descriptor of each open file,
however many the daemon has: systemd ignores a second one.
"""

import array
import asyncio
import errno
import fcntl
import logging
import os
import select
import socket
import termios
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from ..errors import HostError
from ..fds import Fd, HasNumber, identity
from . import notices

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds for the keeper to take a notice, in which the daemon stands still."""
RETRY = 0.01
"""Seconds between two tries."""
MOST_WAITING = 16384
"""Bytes of notices that a keeper has not taken yet, and then is not told more often
that the daemon lives; SIOCOUTQ counts some 800 for each."""
LISTEN_FDS_START = 3
DESCRIPTOR = "d"
"""The letter that the names of a device's descriptors begin with."""
CONTROL = "c"
"""The letter that the name of the daemon's control socket begins with."""
FILE = "f"
"""The letter that the name of the configuration file's text begins with."""
ATTEMPTS = "a"
"""The letter that the name of the count of attempts begins with."""
_KINDS = (ATTEMPTS, CONTROL, DESCRIPTOR, FILE, "s")


Keep = Callable[[HasNumber], str]
"""Keeps a descriptor, and returns the name under which the successor finds it."""


@dataclass(slots=True)
class _Kept:
    identity: tuple[int, int, int]
    users: int = 0
    """How many devices need it."""


class DescriptorStore:
    """Keeps descriptors with the keeper.

    Args:
        channel: to the keeper; closed with this object.
        left: the descriptors that an earlier daemon has left, by their names.
        systemd: whether the keeper is systemd.
    """

    def __init__(
        self,
        channel: socket.socket,
        left: Mapping[str, Fd],
        *,
        systemd: bool = False,
    ) -> None:
        self.left = {name: fd for name, fd in left.items() if _is_ours(name)}
        self._given = {name: fd for name, fd in left.items() if not _is_ours(name)}
        self.systemd = systemd
        self.problem = ""
        """Why nothing is kept any more; empty if all is well."""
        self.failed_heirs = 0
        """How often the keeper has said that the next daemon has not started."""
        self._channel = channel
        self._kept = {name: _Kept(identity(fd)) for name, fd in self.left.items()}
        self._names = {kept.identity: name for name, kept in self._kept.items()}
        self._known: WeakKeyDictionary[HasNumber, str] = WeakKeyDictionary()
        numbers = (int(name[1:], 36) for name in self.left)
        self._last = max(numbers, default=0)
        self._forgotten = self._settled = 0

    def take(self) -> list[Fd]:
        """Return what the keeper has given us beside what was kept: the caller's."""
        given, self._given = self._given, {}
        # If one was kept, by a daemon of another version, no successor is to have it.
        for name in {name.partition("/")[0] for name in given}:
            self.say(notices.forget(name))
        return list(given.values())

    def hold(self, fd: HasNumber, kind: str = DESCRIPTOR) -> str:
        """Keep a descriptor for one more user, and return its name.

        Args:
            fd: stays the caller's.
            kind: the letter that the name begins with, if it is kept from now on.
        """
        name = self.name_of(fd)
        if name is None:
            who = identity(fd)
            name = self._names.get(who) or self._put(fd, who, kind)
            self._known[fd] = name
        self._kept[name].users += 1
        return name

    def name_of(self, fd: HasNumber) -> str | None:
        """Return the name of a descriptor that was kept before, if it still is."""
        name = self._known.get(fd)
        return name if name in self._kept else None

    def _put(self, fd: HasNumber, who: tuple[int, int, int], kind: str) -> str:
        # Short names: all of them have to fit into one environment variable.
        self._last += 1
        name = f"{kind}{_base36(self._last)}"
        self._kept[name], self._names[who] = _Kept(who), name
        self.say(notices.keep(name), fd)
        return name

    def release(self, name: str) -> None:
        """Note that one user needs a descriptor no more; without any, forget it."""
        kept = self._kept[name]
        kept.users -= 1
        if kept.users <= 0:
            self._forget(name)

    def _forget(self, name: str) -> None:
        who = self._kept.pop(name).identity
        # What was left may have two names for one open file.
        if self._names.get(who) == name:
            del self._names[who]
        self._forgotten += 1
        self.say(notices.forget(name))

    def drop_left(self) -> None:
        """Have what an earlier daemon has left closed now, at both ends."""
        while self.left:
            self.left.popitem()[1].close()
        for name in list(self._kept):
            self._forget(name)
        self._wait_taken()

    def close_taken(self, names: Iterable[str]) -> None:
        """Close what was left under these names: a device has copies of it.

        Not at the end of the start only: all devices together would need twice as many
        descriptors as the daemon before us had.
        """
        for name in self.left.keys() & set(names):
            self.left.pop(name).close()

    def finish_start(self) -> None:
        """Close what an earlier daemon has left; forget what no device has taken."""
        while self.left:
            self.left.popitem()[1].close()
        unused = [name for name, kept in self._kept.items() if not kept.users]
        for name in unused:
            self._forget(name)
        if unused:
            self._wait_taken()

    async def settle(self) -> None:
        """Wait until the keeper has closed all that it was told to forget.

        Until then a file that was forgotten is still in use.
        """
        forgotten = self._forgotten
        if forgotten == self._settled:
            return
        with self._barrier() as taken:
            if not self.problem:
                # In another thread: a keeper that is slow must stop no master.
                await asyncio.to_thread(_wait_hangup, taken)
        self._settled = max(self._settled, forgotten)

    def _wait_taken(self) -> None:
        """Wait until the keeper has acted on all notices."""
        with self._barrier() as taken:
            if not self.problem:
                _wait_hangup(taken)

    def _barrier(self) -> Fd:
        """Return a pipe that hangs up when the keeper has acted on all notices."""
        # It closes what comes with a notice that asks for nothing to be kept.
        ours, theirs = map(Fd, os.pipe2(os.O_CLOEXEC))
        with theirs:
            self.say(notices.BARRIER, theirs)
        return ours

    def say(self, notice: str, fd: HasNumber | None = None) -> None:
        """Send a notice to the keeper; if that is not possible, keep nothing more."""
        if self.problem:
            return
        end = time.monotonic() + PATIENCE
        while not self._sent(notice, fd):
            if time.monotonic() > end:
                self._lose(f"it has taken no notice for {PATIENCE:g} s")
                return
            time.sleep(RETRY)

    def _sent(self, notice: str, fd: HasNumber | None) -> bool:
        rights = array.array("i", [] if fd is None else [fd.fileno()])
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self._channel.sendmsg([notice.encode()], beside, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            # Too many descriptors of our user's are in flight: the keeper takes them.
            if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS):
                return False
            self._lose(error.strerror or str(error))
        return True

    def say_alive(self) -> None:
        """Tell the keeper that the daemon lives, unless it takes nothing just now.

        A keeper that is stopped for a while must not find its socket full of this: the
        room is for what is to be kept.
        """
        # systemd's socket has notices of other services, too.
        if not self.problem and (self.systemd or self._waiting() < MOST_WAITING):
            self.say(notices.ALIVE)

    def _waiting(self) -> int:
        """Return how many bytes the keeper has not taken yet."""
        found = array.array("i", [0])
        fcntl.ioctl(self._channel, termios.TIOCOUTQ, found)
        return found[0]

    def check(self) -> None:
        """See whether the keeper is still there."""
        if self.problem or self.systemd:
            return
        with suppress(BlockingIOError):
            while said := self._said():
                self.failed_heirs += said == notices.NO_HEIR
            self._lose("it has ended")

    def _said(self) -> bytes:
        """Return the keeper's next word; nothing at its end.

        Raises:
            BlockingIOError: none has come.
        """
        try:
            return self._channel.recv(notices.MAX_NOTICE)
        except ConnectionError:
            return b""  # it was killed, and had not taken all that we had told it

    def _lose(self, why: str) -> None:
        self.problem = (
            f"the keeper is gone ({why}): if this daemon is killed, masters and slaves "
            "notice it; restart it at a good time"
        )
        log.error("%s", self.problem)
        # A keeper that was only stopped learns by this that what it has is out of date.
        self._channel.close()

    def close(self) -> None:
        """Close the socket to the keeper; what it keeps stays."""
        while self.left:
            self.left.popitem()[1].close()
        while self._given:
            self._given.popitem()[1].close()
        self._channel.close()


def _wait_hangup(pipe: Fd) -> None:
    # Not select(), which takes no number above 1023.
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    poll.poll(1000 * PATIENCE)


def has_keeper(systemd: bool) -> bool:
    """Whether the process that has started us is a keeper.

    Args:
        systemd: whether the user says that systemd is one: it tells us only from
            version 254 on.
    """
    offers = systemd or os.environ.get("FDSTORE", "0") != "0"
    by_systemd = "NOTIFY_SOCKET" in os.environ and offers
    return notices.CHANNEL in os.environ or by_systemd


def is_successor(*, systemd: bool) -> bool:
    """Whether an earlier daemon has left something for us, and has ended already."""
    count = os.environ.get("LISTEN_FDS", "")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return has_keeper(systemd) and ours and count.isdecimal() and int(count) > 0


# System calls: connect, recvmsg, sendmsg, socket(AF_UNIX).
def from_environment(*, systemd: bool) -> DescriptorStore | None:
    """Return the store of the keeper that has started us; None without a keeper.

    The variables that say so are removed: no child of ours is to find them.
    """
    if not has_keeper(systemd):
        return None
    left = _inherited()
    channel = os.environ.pop(notices.CHANNEL, None)
    address = os.environ.get("NOTIFY_SOCKET")
    if channel is not None:
        ours = socket.socket(fileno=int(channel))
        if os.environ.pop(notices.HEIR, None) is not None:
            left = _inherit(ours)
    elif address:
        ours = _connect(address)
    else:
        return None
    os.set_inheritable(ours.fileno(), False)
    ours.setblocking(False)
    return DescriptorStore(ours, left, systemd=channel is None)


def _connect(address: str) -> socket.socket:
    """Connect to the service manager.

    Raises:
        HostError: it does not listen.
    """
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ours.connect(address.replace("@", "\0", 1))
    except OSError as error:
        ours.close()
        raise HostError(
            f"cannot reach the service manager at {address} (NOTIFY_SOCKET): "
            f"{error.strerror}",
            code="H116",
        ) from error
    return ours


def given_count() -> int:
    """Return how many descriptors a service manager has given this process."""
    count = os.environ.get("LISTEN_FDS", "")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(count) if ours and count.isdecimal() else 0


def _inherit(channel: socket.socket) -> dict[str, Fd]:
    """Wait until the daemon before us has ended, and return what it has left."""
    channel.send(notices.WAITS.encode())
    found: dict[str, Fd] = {}
    while True:
        notice, fds = notices.receive(channel)
        said = notices.parse(notice)
        if not notice:
            # The keeper was killed.  Its daemon serves, and says so.
            channel.close()
            raise SystemExit(0)
        if "GO" in said:
            return found
        for name, number in zip(said["FDNAMES"].split(":"), fds, strict=True):
            found[name] = Fd(number)


def _inherited() -> dict[str, Fd]:
    """Return the descriptors of LISTEN_FDS by their names (sd_listen_fds(3))."""
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    pid, count, labels = (os.environ.pop(name, "") for name in names)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, Fd] = {}
    for place, name in zip(range(int(count)), labels.split(":"), strict=False):
        number = LISTEN_FDS_START + place
        os.set_inheritable(number, False)
        # systemd gives all sockets of one unit the same name.
        unique = name if _is_ours(name) else f"{name}/{place}"
        if unique in found:
            os.close(number)
        else:
            found[unique] = Fd(number)
    return found


def _is_ours(name: str) -> bool:
    return name[:1] in _KINDS and name[1:].isalnum() and name.isascii()


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = digits[digit] + text
    return text or "0"


def names_of(left: Iterable[str], kind: str) -> list[str]:
    """Return the names that begin with the letter `kind`, if they are ours."""
    return sorted(name for name in left if _is_ours(name) and name[0] == kind)
