# SPDX-License-Identifier: Apache-2.0
"""The keeper: the parent process of a daemon, which keeps its descriptors.

Theory of operation.  The daemon sends each descriptor that its successor needs over a
socket, under a name.  When the daemon dies, whatever the reason, the keeper starts it
again at once, with all descriptors that were kept: as long as the keeper has a
descriptor, no other end sees a hang-up.  The successor finds them as systemd would give
them to it (LISTEN_FDS, LISTEN_FDNAMES).

The keeper knows nothing of what it keeps, so there is little in it that could fail or
would have to be upgraded.  It starts the interpreter's program again, and not a
copy of itself: a package that was upgraded meanwhile is used.

At SIGUSR2, for an upgrade, the keeper starts the next daemon first, the *heir*.  When
that has all its programs in memory and waits, the present one is asked to make room,
and the heir is given all descriptors over its socket.  An heir that does not start
changes nothing.  With `--keeper standby` there always is an heir, which takes over when
the daemon is killed, too: a process more, and no start of Python in between.

What the daemon's end means::

    status 0, 1, 2     it has said why: the keeper ends with the same status (unless it
                       is a successor that was never ready)
    anything, and      it cannot start: the keeper ends, so that this is not tried again
    none was ready     and again
    HANDED_OVER        it was asked to (SIGUSR2): start its successor at once
    anything else      it was killed, or failed: start its successor, after a pause if
                       that happens again and again

This file must import nothing of ours but `notices`, `signals`, `log_line`, `upstream`
and `numbers_of_fds`: what it imports stays as it was when the keeper was started.
"""

import array
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import FrameType

from . import log_line, notices, signals
from .numbers_of_fds import give_numbers
from .upstream import Upstream

FIRST_FD = 3
"""The first descriptor that a child gets, as with systemd (SD_LISTEN_FDS_START)."""
TICK = 0.5
"""Seconds between two looks at a child that should say that it is alive."""
PATIENCE = 6
"""Ticks without a word of the child, after which it hangs: 3 s."""
STARTING = 60
"""Ticks for a successor to become ready: 30 s."""
ENDING = 60
"""Ticks for a child that has said that it is ending: 30 s."""
DEAF = 2
"""Ticks (0.5 to 1 s) after which a daemon that has closed its end goes on alone."""
SHORT_LIFE = 2.0
"""Seconds: a child that has lived for a shorter time is not started again at once."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a child is started again after a short life: then twice as long."""
RETRY = 0.5
"""Seconds before a daemon is started again that the machine had no room for."""
HEIR_PATIENCE = 120
"""Ticks for an heir to start: a minute."""
ASKED_AGAIN = 1.0
"""Seconds after a first signal to end; a second one may kill the child from then on."""
USELESS = 2
"""Children that failed before they were ready, after which nothing is kept any more."""


def main(arguments: Sequence[str]) -> int:
    """Run the daemon with these arguments; return its status at its end."""
    _raise_descriptor_limit()
    upstream = Upstream(os.environ.get("NOTIFY_SOCKET"))
    flags = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *flags, "-m", "vhostpci_host", *arguments]
    # The daemon checks its options; no other one has this value.
    standby = bool({"standby", "--keeper=standby"} & set(arguments))
    keeper = Keeper(command, upstream, standby=standby, first=_first())
    try:
        return keeper.run()
    finally:
        # Python removes its handlers when it ends, and one more Ctrl-C would end us
        # with another status than the daemon's.
        signals.block()


def _first() -> "Child | None":
    """Return the daemon that was started before this process became the keeper."""
    pid, _, channel = os.environ.pop(notices.FIRST, "").partition(":")
    if not pid:
        return None
    ours = socket.socket(fileno=int(channel))
    os.set_inheritable(ours.fileno(), False)
    ours.setblocking(False)
    return Child(int(pid), ours)


def _raise_descriptor_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(slots=True)
class Child:
    """One daemon process."""

    pid: int
    channel: socket.socket
    started: float = field(default_factory=time.monotonic)
    ready: bool = False
    watched: bool = False
    """Whether it says from time to time that it is alive."""
    ending: bool = False
    silent: int = 0
    """Ticks since it said something."""
    killed: bool = False
    asked: bool = False
    """Whether it was asked to make room."""
    waits: bool = False
    """Whether it is an heir that waits for what the present daemon leaves."""
    deaf: int = 0
    """Ticks since its end of the channel was closed, and one more."""
    reserve: bool = False
    """Whether it is an heir for the case that the present daemon is killed."""

    @property
    def hangs(self) -> bool:
        """Whether it is silent for too long."""
        limit = PATIENCE if self.ready else STARTING
        if self.deaf:
            return False  # it cannot say that it lives
        return self.watched and self.silent > (ENDING if self.ending else limit)


class Keeper:
    """Runs one daemon after the other, and keeps what each of them leaves.

    Args:
        command: starts the daemon.
        upstream: is told of it.
        standby: whether there always is to be an heir.
        first: the first daemon, if it was started already.
    """

    def __init__(
        self,
        command: Sequence[str],
        upstream: Upstream,
        *,
        standby: bool = False,
        first: Child | None = None,
    ) -> None:
        self._command = command
        self._standby = standby
        self._upstream = upstream
        self._kept: dict[str, list[int]] = {}
        self._stopping = False
        self._asked_to_end: float | None = None
        """When the daemon was first told to end."""
        self._watched = False
        """Whether a daemon says that it is alive: then each of its successors does."""
        self._signals: deque[int] = deque()
        """What has come for the daemon, and is not yet passed on."""
        self._first = first
        self._any_ready = False
        self._short_lives = 0
        self._useless = 0
        self._heir: Child | None = None
        self._wants_heir = False
        self._no_reserve = ""
        """Why there is no heir, although there always is to be one."""
        self._woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in signals.ALL:
            signal.signal(number, self._on_signal)
        # A handler, as an ignored SIGCHLD would take the child's status from us.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signals.unblock()

    def run(self) -> int:
        """Run daemons until one ends by itself; return its status."""
        child = self._first or self._start()
        while True:
            status = self._serve(child)
            self._take_notices(child)
            child.channel.close()
            # One that makes room has closed nothing: its successor is to end instead.
            ends = self._stopping and status != notices.HANDED_OVER
            if ends or self._is_end(child, status):
                self._end_heir()
                return _exit_status(status)
            self._before_next(child, status)
            if self._stopping and status == notices.HANDED_OVER:
                self._signals.append(signal.SIGTERM)
                self._asked_to_end = None
            elif self._stopping:
                self._end_heir()
                return 0
            next_one = self._next()
            if next_one is None:
                return 1
            child = next_one

    def _is_end(self, child: Child, status: int) -> bool:
        """Whether a daemon has ended by itself, and said why."""
        if not self._any_ready and not self._worth_a_try(status):
            return True
        # A successor that does not even start, perhaps because a package is only half
        # upgraded, is tried again: there are masters that do not know of it yet.
        if status not in notices.EXPLAINED:
            return False
        return status == 0 or child.ready or not self._kept

    def _worth_a_try(self, status: int) -> bool:
        """Whether one may succeed where none was ever ready."""
        # One that was killed may have served some of its devices already.  One that
        # failed would fail again.
        killed = status < 0
        return killed and bool(self._kept) and self._useless < notices.USELESS

    def _next(self) -> Child | None:
        """Return the next daemon: the heir, if there is one.

        None if it cannot be started, and we are to end.
        """
        heir, self._heir = self._heir, None
        if heir is None:
            return self._start_when_possible()
        try:
            self._give_all(heir)
        except OSError as error:
            log_line.say(
                f"the next daemon (pid {heir.pid}) takes nothing: {error.strerror}"
            )
            _kill(heir)
            return self._start_when_possible()
        return heir

    def _give_all(self, heir: Child) -> None:
        """Give an heir all that is kept."""
        heir.channel.settimeout(SHORT_LIFE)
        pairs = self._pairs()
        for start in range(0, len(pairs), notices.MOST_FDS):
            some = pairs[start : start + notices.MOST_FDS]
            names = ":".join(name for name, _ in some)
            rights = array.array("i", [fd for _, fd in some])
            heir.channel.sendmsg(
                [f"FDNAMES={names}".encode()],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
            )
        heir.channel.send(notices.GO.encode())
        heir.channel.setblocking(False)
        heir.silent, heir.started = 0, time.monotonic()

    def _pairs(self) -> list[tuple[str, int]]:
        return [(name, fd) for name, fds in self._kept.items() for fd in fds]

    def _end_heir(self) -> None:
        heir, self._heir = self._heir, None
        if heir is not None:
            _kill(heir)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Note a signal.

        It may come at any line of ours: only `_pass_signals_on` knows whether there is
        a child, and what it has said of itself.
        """
        if number == signal.SIGUSR2:
            self._wants_heir = True
            return
        self._stopping |= number in signals.ENDING
        self._signals.append(number)

    def _pass_signals_on(self, child: Child) -> None:
        """Tell a daemon, which may have ended but is still our child, what has come."""
        while self._signals:
            number = self._signals.popleft()
            if number in signals.ENDING:
                now = time.monotonic()
                if self._asked_to_end is None:
                    self._asked_to_end = now
                elif not child.watched and now - self._asked_to_end > ASKED_AGAIN:
                    # It has not come to its handlers, and may hang.
                    number = signal.SIGKILL
            os.kill(child.pid, number)

    # Starting a daemon.

    def _start(self, *, heir: bool = False) -> Child:
        """Start a daemon.

        Raises:
            OSError: there is no room for a process, or for its channel.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as undo, theirs:
            undo.callback(ours.close)
            ours.setblocking(False)
            # In the child they wait until the daemon has its handlers, and never come
            # to those of the keeper.
            with signals.blocked():
                pid = os.fork()
                if pid == 0:
                    try:
                        ours.close()
                        self._become_daemon(theirs, heir=heir)
                    finally:
                        os._exit(notices.FAILED)
            undo.pop_all()
        return Child(pid, ours)

    def _start_when_possible(self) -> Child | None:
        """Start a daemon, after as many tries as it needs; None if we are to end."""
        problem: str | None = ""
        while True:
            try:
                return self._start()
            except OSError as error:
                if problem != (problem := error.strerror):
                    log_line.say(
                        f"cannot start the next daemon: {problem}; tries again"
                    )
            if self._stopping:
                return None
            self._pause(RETRY)

    def _start_heir(self, child: Child, poll: "select.poll", *, reserve: bool) -> None:
        """Start an heir; without room for it, the present daemon goes on."""
        try:
            self._heir = self._start(heir=True)
        except OSError as error:
            problem = f"cannot start the next daemon: {error.strerror}"
            if reserve and problem == self._no_reserve:
                return  # as at the tick before
            log_line.say(problem)
            if reserve:
                self._no_reserve = problem
            else:
                _say_no_heir(child)
            return
        self._no_reserve = ""
        self._heir.reserve = reserve
        poll.register(self._heir.channel.fileno(), select.POLLIN)

    def _become_daemon(self, channel: socket.socket, *, heir: bool) -> None:
        """Execute the daemon, in the child process, with all that is kept."""
        pairs = [] if heir else self._pairs()
        give_numbers([*(fd for _, fd in pairs), channel.fileno()], FIRST_FD)
        environment = {
            name: value
            for name, value in os.environ.items()
            # These were for the keeper.
            if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        }
        environment |= {
            notices.CHANNEL: str(FIRST_FD + len(pairs)),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(pairs)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in pairs),
        }
        if heir:
            environment[notices.HEIR] = "1"
        os.execve(self._command[0], list(self._command), environment)

    # While it runs.

    def _serve(self, child: Child) -> int:
        """Take the daemon's notices until it ends; return its status."""
        poll = select.poll()
        poll.register(child.channel.fileno(), select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        # Else one that hangs before its first word would hang for as long as it likes.
        child.watched |= self._watched
        due = time.monotonic() + TICK
        while True:
            poll.poll(1000 * max(0.0, due - time.monotonic()))
            _drain(self._woken)
            self._look_at_heir(child, poll)
            if not self._take_notices(child) and not child.deaf:
                # Its end is closed, and would be reported again and again: the daemon
                # is about to end, which SIGCHLD says, or has given us up.
                poll.unregister(child.channel.fileno())
                child.deaf = 1
            self._pass_signals_on(child)
            status = _status(child.pid)
            if status is not None:
                return status
            if time.monotonic() >= due:
                # Count the ticks, and not the time: a machine that was suspended, or a
                # keeper that was not run for seconds, says nothing of the daemon.
                due = time.monotonic() + TICK
                self._tick(child, poll)

    def _look_at_heir(self, child: Child, poll: "select.poll") -> None:
        """Start an heir if there is to be one, and see how far it has come."""
        if self._wants_heir and self._heir is not None and self._heir.reserve:
            if not self._heir.waits:
                poll.unregister(self._heir.channel.fileno())
            self._end_heir()  # it has the programs of before an upgrade
        if self._wants_heir and self._heir is None:
            self._start_heir(child, poll, reserve=False)
        self._wants_heir = False
        heir = self._heir
        if heir is None:
            return
        if heir.waits:
            self._ask_for_room(heir, child)
            return
        self._take_notices(heir)
        if heir.waits:
            poll.unregister(heir.channel.fileno())
            self._ask_for_room(heir, child)
        elif (status := _status(heir.pid)) is not None:
            poll.unregister(heir.channel.fileno())
            heir.channel.close()
            self._heir = None
            log_line.say(
                f"the next daemon has not started (status {status}): this one goes on"
            )
            _say_no_heir(child)

    def _ask_for_room(self, heir: Child, child: Child) -> None:
        """Have the daemon hand over to an heir that waits, once it is ready itself."""
        if child.ready and not heir.reserve and not child.asked:
            # What it has told us until its end comes first.
            child.asked = True
            os.kill(child.pid, signal.SIGUSR2)

    def _tick(self, child: Child, poll: "select.poll") -> None:
        # At a tick, so that one that cannot start is not started without a pause.
        if self._standby and child.ready and self._heir is None:
            self._start_heir(child, poll, reserve=True)
        child.silent += 1
        if child.deaf:
            self._on_deaf(child)
        heir = self._heir
        if heir is not None and heir.waits and _status(heir.pid) is not None:
            heir.channel.close()
            self._heir = None  # it was killed, and another one comes
        elif heir is not None and not heir.waits:
            heir.silent += 1
            if heir.silent > HEIR_PATIENCE:
                os.kill(heir.pid, signal.SIGKILL)
        if child.hangs and not child.killed:
            child.killed = True
            log_line.say(f"the daemon (pid {child.pid}) hangs: its successor goes on")
            os.kill(child.pid, signal.SIGKILL)

    def _on_deaf(self, child: Child) -> None:
        """Keep nothing of a daemon that goes on without us."""
        # We were stopped, perhaps, and did not take what it told us.  A successor would
        # go on with things that the daemon has changed since.
        if child.ending:
            return  # it has closed everything, and may take a while to end
        child.deaf += 1
        if child.deaf > DEAF and self._kept:
            log_line.say(
                f"the daemon (pid {child.pid}) goes on alone: nothing is kept of it"
            )
            self._forget_all()

    def _forget_all(self) -> None:
        while self._kept:
            _close(self._kept.popitem()[1])

    def _take_notices(self, child: Child) -> bool:
        """Act on all notices that have come; return whether more can come."""
        while True:
            try:
                notice, fds = notices.receive(child.channel)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                # It had not read all that we said.  Linux reports that once, and
                # before the notices that are there.
                continue
            except OSError:
                return False
            if not notice:
                return False
            child.silent = 0
            self._act(child, notices.parse(notice), fds)

    def _act(self, child: Child, said: Mapping[str, str], fds: list[int]) -> None:
        name = said.get("FDNAME", "stored")
        if said.get("FDSTOREREMOVE") == "1":
            _close(self._kept.pop(name, []))
        if said.get("FDSTORE") == "1":
            self._kept.setdefault(name, []).extend(fds)
        else:
            _close(fds)
        child.waits |= said.get("HEIR") == "1"
        child.ready |= said.get("READY") == "1"
        self._any_ready |= child.ready
        child.ending |= said.get("STOPPING") == "1"
        child.watched |= said.get("WATCHDOG") == "1"
        self._watched |= child.watched
        self._upstream.pass_on(said)

    # Between two daemons.

    def _before_next(self, child: Child, status: int) -> None:
        """Say what happened, and wait if it happens again and again."""
        how = f"was killed by signal {-status}" if status < 0 else "failed"
        if status == -signal.SIGSYS:
            how = (
                "made a system call that its filter forbids, and was killed; the "
                "kernel's log names the call (type=1326); see --seccomp"
            )
        if status == notices.HANDED_OVER:
            how = "makes room"
        log_line.say(f"the daemon (pid {child.pid}) {how}: its successor goes on")
        if status == notices.HANDED_OVER:
            return
        if status != -signal.SIGKILL or child.killed:
            self._drop_useless(child)
        short = time.monotonic() - child.started < SHORT_LIFE
        self._short_lives = self._short_lives + 1 if short else 0
        if self._short_lives > 1:
            doublings = min(self._short_lives - 2, 16)
            self._pause(min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE))

    def _drop_useless(self, child: Child) -> None:
        """Keep nothing any more if what is kept ends each successor at once.

        Not called for one that was killed by another process.
        """
        self._useless = 0 if child.ready else self._useless + 1
        if self._useless >= notices.USELESS and self._kept:
            log_line.say(
                "what was kept seems to end the daemon: it starts without that"
            )
            self._forget_all()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            select.select([self._woken], [], [], left)
            _drain(self._woken)


def _exit_status(status: int) -> int:
    """Return the status with which the keeper ends when the daemon ended so."""
    if status == notices.FAILED:
        return 1  # as Python itself after a traceback
    return status if status >= 0 else 128 - status


def _say_no_heir(child: Child) -> None:
    """Tell a daemon that it is to go on."""
    with suppress(OSError):
        child.channel.send(notices.NO_HEIR)


def _kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    child.channel.close()


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        return


def _status(pid: int) -> int | None:
    """Return how a child ended, a signal as a negative number; None if it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
