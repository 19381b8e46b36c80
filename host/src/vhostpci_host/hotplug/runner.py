# SPDX-License-Identifier: Apache-2.0
"""The process that runs virsh for a daemon whose system calls are filtered.

Theory of operation.  Such a daemon may start no program, and a program that it started
would have the daemon's filter, in which virsh could not run.  So the daemon starts this
process before it has a filter, and sends it each command over a socket: the arguments,
and the descriptors that virsh is to have.  One of these is a *line* for that command
alone.  virsh's status comes back over it; a line that the daemon closes ends virsh.
When the daemon ends, however it does, all its sockets are closed, and so are all
commands and this process.

This file runs by itself, and must import nothing of ours.
"""

import array
import fcntl
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

MOST_FDS = 8
MAX_COMMAND = 65536
LINE, STDOUT, STDERR = range(3)
"""The first descriptors of a command; the others are those that virsh inherits."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class _Running:
    """One command."""

    pid: int
    line: socket.socket


class Server:
    """Runs the commands that come over a socket.

    Args:
        commands: the socket.
    """

    def __init__(self, commands: socket.socket) -> None:
        self._commands = commands
        self._poll = select.poll()
        self._poll.register(commands, select.POLLIN)
        self._running: dict[int, _Running] = {}
        """Each command twice: by its pidfd, and by its line."""

    def run(self) -> None:
        """Run commands until the daemon has closed its end; then end them all."""
        while True:
            # The commands' socket was registered first, and so comes first: a new
            # descriptor cannot get a number about which there is still an old event.
            for fd, _ in self._poll.poll():
                if fd != self._commands.fileno():
                    self._finish(fd)
                elif not self._take():
                    for running in self._running.values():
                        os.kill(running.pid, signal.SIGKILL)
                    return

    def _take(self) -> bool:
        """Start a command; return whether there was one."""
        data, fds, *_ = socket.recv_fds(
            self._commands, MAX_COMMAND, MOST_FDS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return False
        command = json.loads(data)
        line = socket.socket(fileno=fds[LINE])
        try:
            pid = _spawn(command["argv"], command["env"], fds, command["numbers"])
        except OSError as error:
            _answer(line, {"errno": error.errno})
            line.close()
        else:
            running = _Running(pid, line)
            for fd in (os.pidfd_open(pid), line.fileno()):
                self._running[fd] = running
                self._poll.register(fd, select.POLLIN)
        finally:
            for fd in fds[STDOUT:]:
                os.close(fd)
        return True

    def _finish(self, fd: int) -> None:
        """End a command, if it has not ended by itself, and say how it has ended."""
        if fd not in self._running:
            return  # both its descriptors were ready
        running = self._running[fd]
        if fd == running.line.fileno():
            os.kill(running.pid, signal.SIGKILL)
        _, status = os.waitpid(running.pid, 0)
        _answer(running.line, {"status": os.waitstatus_to_exitcode(status)})
        for one in [one for one, its in self._running.items() if its is running]:
            self._poll.unregister(one)
            del self._running[one]
            if one != running.line.fileno():
                os.close(one)
        running.line.close()


def _answer(line: socket.socket, answer: Mapping[str, int | None]) -> None:
    # The daemon may have closed its end: it wants to know no more.
    with suppress(OSError):
        line.send(json.dumps(answer).encode())


def _spawn(
    argv: list[str], env: dict[str, str], fds: list[int], numbers: list[int]
) -> int:
    """Start a command whose descriptors have the numbers that they had in the daemon.

    Raises:
        OSError: it cannot be started.
    """
    wanted = [1, 2, *numbers]
    # Away from the numbers that they are to have, in which order ever.
    free = max(wanted) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in fds[STDOUT:]]
    try:
        return os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *(
                    (os.POSIX_SPAWN_DUP2, fd, number)
                    for fd, number in zip(moved, wanted, strict=True)
                ),
            ],
            # Ctrl-C in the daemon's terminal must not end a virsh half-way.
            setsid=True,
            setsigdef=_SIGNALS,
            setsigmask=(),
        )
    finally:
        for fd in moved:
            os.close(fd)


def send(
    commands: socket.socket, command: Mapping[str, object], fds: list[int]
) -> None:
    """Send a command from the daemon; `Server` says what belongs to one."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    commands.sendmsg([json.dumps(command).encode()], rights)


def main() -> None:
    """Serve the socket that is our standard input."""
    os.setsid()
    for number in _SIGNALS:
        # A service manager and a terminal send these to all processes, but what a
        # daemon still has to unplug at its end needs this one.
        signal.signal(number, signal.SIG_IGN)
    with open("/proc/self/comm", "w") as name:
        name.write("vhostpci-virsh")
    with socket.socket(fileno=os.dup(0)) as commands:
        Server(commands).run()


if __name__ == "__main__":
    main()
