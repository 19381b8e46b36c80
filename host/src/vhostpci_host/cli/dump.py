# SPDX-License-Identifier: Apache-2.0
"""The command `dump`: a device's metadata and rings, decoded from its memory files.

This process opens the files itself, for reading only: the kernel decides who may, and
the daemon, which moves the doorbells of all devices, does nothing but answer `status`.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from vhostpci_shared.dump import report, text
from vhostpci_shared.dump.guest_memory import Unreadable
from vhostpci_shared.terminal import Terminal, add_color

from ..config import options
from ..errors import HostError
from ..interfaces import FAILED, Json
from .arguments import add_name, run_dir
from .manage import ask_status

# O_NONBLOCK: between a look and the open, a number may become that of a FIFO.
_READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def add_dump(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Reads copies while everything goes on; nothing is changed.  It needs the "
        "rights to read the master's memory: those of root or of the daemon's user."
    )
    add_name(parser)
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument(
        "--ring",
        type=int,
        metavar="N",
        help="only this vring, with all of its descriptors",
    )
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    add_color(parser)
    parser.set_defaults(run=_dump)


def _dump(args: argparse.Namespace) -> None:
    status = ask_status(run_dir(args), args.name)
    if status["state"] == FAILED:
        raise HostError(
            f"{args.name} has failed, and has no memory: {status['reason']}",
            code="H002",
        )
    with ExitStack() as undo:
        try:
            found = report.dump(_open(status, undo), args.ring)
        except Unreadable as why:
            raise HostError(f"{args.name}: {why}", code=why.code) from None
    if args.json:
        print(json.dumps({"name": args.name, **found}, indent=2))
    else:
        terminal = Terminal.of(color=args.color)
        print("\n".join(text.lines(found, terminal)))


class FileWindows:
    """The windows of a device, as files (a `Windows`).

    Args:
        files: descriptors of those that are there, by their numbers.
    """

    def __init__(self, files: Mapping[int, int]) -> None:
        self._files = files

    def size(self, window: int) -> int | None:
        fd = self._files.get(window)
        return None if fd is None else os.fstat(fd).st_size

    def read(self, window: int, offset: int, length: int) -> bytes:
        # Not mapped: a file that is cut meanwhile would end us by SIGBUS.
        data = os.pread(self._files[window], length, offset)
        if len(data) < length:
            raise Unreadable(
                f"window {window} was cut to {offset + len(data):#x} bytes", code="H003"
            )
        return data


def _open(status: Json, undo: ExitStack) -> FileWindows:
    """Open the files that a status names, until `undo` is closed.

    Raises:
        HostError: the daemon does not name them, or this user may not read them.
    """
    pid, memory = status["daemon"]["pid"], status["memory"]
    if "file" not in memory:
        raise HostError(
            f"the daemon (pid {pid}) is of version {status['daemon']['version']}, "
            "which does not name its memory files: restart it",
            code="H004",
        )
    wanted = {0: memory["file"]}
    wanted |= {one["window"]: one["file"] for one in status["windows"]}
    files = {}
    try:
        for path in _candidates(pid, memory["path"]):
            # A descriptor may be closed, or be of a process that hides it, meanwhile.
            with suppress(FileNotFoundError):
                for number in _matching(path, wanted):
                    files[number] = os.open(path, _READ_ONLY)
                    undo.callback(os.close, files[number])
                    del wanted[number]
            if not wanted:
                break
    except PermissionError:
        raise HostError(
            f"this user may not read the memory of the daemon (pid {pid}): run as root "
            "or as the daemon's user",
            code="H005",
        ) from None
    return FileWindows(files)


def _candidates(pid: int, arena: str | None) -> Iterator[str]:
    """Yield the paths at which the files may be found."""
    if arena is not None:
        yield arena
    directory = Path(f"/proc/{pid}/fd")
    with suppress(FileNotFoundError):
        yield from (str(directory / name) for name in os.listdir(directory))


def _matching(path: str, wanted: Mapping[int, Json]) -> list[int]:
    """Return the windows whose file is at a path."""
    there = os.stat(path)
    return [
        number
        for number, file in wanted.items()
        if (file["device"], file["inode"]) == (there.st_dev, there.st_ino)
    ]
