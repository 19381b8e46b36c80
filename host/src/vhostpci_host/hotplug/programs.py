# SPDX-License-Identifier: Apache-2.0
"""Run another program to its end: as our child, or by way of `runner.py`."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from . import runner

log = logging.getLogger(__name__)

MAX_ANSWER = 4096
LAST = 2.0
"""Seconds for the runner to end after the daemon."""
_KINDS = (socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_STREAM)
"""Of the line, and of what is the program's stdout and stderr."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program has ended, and what it has printed."""

    status: int
    """Its exit status; a signal as a negative number."""
    out: bytes
    err: bytes


class Programs(Protocol):
    """A way to run programs."""

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]
    ) -> Done:
        """Run a program to its end; kill it if the caller is cancelled.

        Args:
            argv: its name, found by PATH, and its arguments.
            env: its environment.
            fds: the descriptors that it inherits, under the same numbers.

        Raises:
            OSError: it cannot be started.
        """
        ...


class Children:
    """Runs programs as children of this process."""

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]
    ) -> Done:
        """Run a program; see `Programs`."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            pass_fds=fds,
            # Ctrl-C in the daemon's terminal must not end a virsh half-way.
            start_new_session=True,
        )
        try:
            out, err = await process.communicate()
        finally:
            # Also when the caller is cancelled: leave no program behind.
            if process.returncode is None:
                process.kill()
                await process.communicate()
        return Done(process.returncode or 0, out, err)


class Runner:
    """Has programs run by a process that is started now and lives until `close`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._commands = ours
        ours.setblocking(False)
        # As the keeper starts the daemon: with the same modules, wherever they are.
        flags = ["-P"] if sys.flags.safe_path else []
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-m", runner.__name__], stdin=theirs.fileno()
            )

    # System calls: recvfrom, sendmsg, socketpair(AF_UNIX).
    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]
    ) -> Done:
        """Have a program run; see `Programs`."""
        command = {"argv": [*argv], "env": {**env}, "numbers": [*fds]}
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in _KINDS]
            line, out, err = (stack.enter_context(ours) for ours, _ in pairs)
            with contextlib.ExitStack() as sent:
                theirs = [sent.enter_context(other).fileno() for _, other in pairs]
                runner.send(self._commands, command, [*theirs, *fds])
            for ours in (line, out, err):
                ours.setblocking(False)
            # A program that has ended has closed its outputs.
            printed = await asyncio.gather(_read(loop, out), _read(loop, err))
            answer = json.loads(await loop.sock_recv(line, MAX_ANSWER) or "{}")
        if (code := answer.get("errno")) is not None:
            raise OSError(code, os.strerror(code))
        if "status" not in answer:
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "the process that runs programs for it has ended"
            )
        return Done(answer["status"], *printed)

    # System calls: wait4.
    def close(self) -> None:
        """End the process, and all that it runs."""
        self._commands.close()
        try:
            self._process.wait(LAST)
        except subprocess.TimeoutExpired:
            # It ends by itself when it gets a processor.  We may not kill it: the
            # daemon's filter of system calls would kill the daemon for that.
            log.warning(
                "the process that runs virsh (pid %d) ends later", self._process.pid
            )


async def _read(loop: asyncio.AbstractEventLoop, ours: socket.socket) -> bytes:
    """Return all that a program prints, until it has closed its end."""
    found = bytearray()
    while data := await loop.sock_recv(ours, 65536):
        found += data
    return bytes(found)
