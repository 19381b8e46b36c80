# SPDX-License-Identifier: Apache-2.0
"""The command `pcap`: a capture of a device's rings, with their virtio-net headers."""

import argparse
import errno
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

from .. import __version__, status_socket
from ..dataplane.capture_reader import Packet, Reader
from ..errors import Unusable
from . import pcapng
from .errors import UsageError
from .served import find, one_device

_PAUSE = 0.01
"""Seconds between two looks for packets."""
_LOOK = 0.1
"""Seconds between two looks whether a signal has come, while the output is full."""
_LAST = 2.0
"""Seconds for which a full output is waited for after a signal."""
_HEADER = 12
"""Bytes of the longest net header, which are captured beside the frame."""
_SNAPLEN = 65535
_TO_MASTER = 0
"""The number of a pair's ring that carries packets to the master."""


def add_pcap(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The file is pcapng: an interface for each ring, Ethernet frames, and the "
        "virtio-net header in each packet's comment if it says anything.  Read it live "
        "by `pcap NAME -w - | wireshark -k -i -`.  What is captured is what has "
        "crossed; the rings go on without a wait, and packets that could not be "
        "written in time are counted.  For other data planes: tcpdump -i TAP."
    )
    one_device(parser)
    parser.add_argument(
        "-w",
        "--write",
        metavar="FILE",
        default="-",
        help="where the capture goes; -: standard output, which must be no terminal "
        "(default: -)",
    )
    parser.add_argument(
        "--ring",
        type=_not_negative,
        metavar="N",
        help="only this vring of the master's: even numbers carry packets to the "
        "master, odd ones from it",
    )
    parser.add_argument(
        "--snaplen",
        type=_positive,
        default=_SNAPLEN,
        metavar="N",
        help="bytes of each frame that are captured at most (default: %(default)s)",
    )
    parser.add_argument(
        "-c",
        "--count",
        type=_positive,
        metavar="N",
        help="end after so many packets (default: until SIGINT or SIGTERM)",
    )
    parser.set_defaults(run=_pcap)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _pcap(arguments: argparse.Namespace) -> None:
    if arguments.write == "-" and os.isatty(sys.stdout.fileno()):
        raise UsageError(
            "pcap: -w FILE, or a pipe for the capture, is missing", code="G013"
        )
    link = find(arguments.name)
    question = {
        "command": "capture",
        "device": link["device"],
        "snaplen": min(arguments.snaplen, _SNAPLEN) + _HEADER,
    }
    with ExitStack() as undo:
        answer, fds, connection = status_socket.hold(link["pid"], question)
        undo.callback(connection.close)
        for fd in fds:
            undo.callback(os.close, fd)
        if arguments.ring is not None and arguments.ring >= 2 * len(fds):
            raise Unusable(
                f"no ring {arguments.ring}; there are {2 * len(fds)}, from 0 on",
                code="G014",
            )
        readers = [Reader(fd, answer["slots"], answer["slot_size"]) for fd in fds]
        for reader in readers:
            undo.callback(reader.close)
        name = link["name"] or link["device"]
        # Not before: a capture that is refused must not empty the file of another.
        output = Output(arguments.write, undo)
        with suppress(BrokenPipeError):  # wireshark was closed, as a user may want
            _Capture(output, name, readers, arguments).run(connection)


class Output:
    """Where blocks go: each as a whole, or not at all.

    Args:
        name: a file, which is made new; "-" for standard output.
        undo: closes it.

    Raises:
        Unusable: it cannot be made.
    """

    def __init__(self, name: str, undo: ExitStack) -> None:
        self._name = name
        self._fd = 1
        if name != "-":
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            try:
                # No other user may read the master's packets.
                self._fd = os.open(name, flags, 0o600)
            except OSError as error:
                raise Unusable(
                    f"cannot write {name}: {error.strerror}", code="G015"
                ) from None
            undo.callback(os.close, self._fd)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._end = 0
        self._end_by: float | None = None
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def end_soon(self) -> None:
        """Wait no longer than `_LAST` seconds from now for a reader that hangs."""
        if self._end_by is None:
            self._end_by = time.monotonic() + _LAST

    def write(self, block: bytes) -> None:
        """Write a block.

        Raises:
            BrokenPipeError: the reader has ended.
            Unusable: there is no space, and the file ends with the block before; or it
                is to end soon, and nothing reads it.
        """
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._is_file and rest.nbytes < len(block):
                os.ftruncate(self._fd, self._end)
            more = "; it is valid up to here" if self._is_file else ""
            hint = ": no space" if error.errno == errno.ENOSPC else ""
            raise Unusable(
                f"cannot write {self._name}{hint}: {error.strerror} after {self._end} "
                f"bytes{more}",
                code="G016",
            ) from None
        self._end += len(block)

    def _write_some(self, data: memoryview) -> int:
        """Write what there is room for; return how much that was.

        A write() without room would go on after a signal, so poll() waits instead.
        """
        if self._is_file:
            return os.write(self._fd, data)
        if self._poll.poll(_LOOK * 1000):
            # Another process that has the same open file may have made it non-blocking.
            with suppress(BlockingIOError):
                # No more: there may not be room for it, whatever poll() says.
                return os.write(self._fd, data[: select.PIPE_BUF])
            time.sleep(_PAUSE)
        if self._end_by is not None and time.monotonic() >= self._end_by:
            raise TimeoutError(errno.ETIMEDOUT, "nothing reads it")
        return 0


class _Capture:
    """Brings packets of all queue pairs into a file.

    Args:
        output: the file.
        name: the device's.
        readers: one for each queue pair.
        arguments: the command's.
    """

    def __init__(
        self,
        output: Output,
        name: str,
        readers: Sequence[Reader],
        arguments: argparse.Namespace,
    ) -> None:
        self._output = output
        self._readers = readers
        self._count: int | None = arguments.count
        self._snaplen: int = arguments.snaplen
        rings: Sequence[int] = range(2 * len(readers))
        if arguments.ring is not None:
            rings = [arguments.ring]
        self._interfaces = {ring: number for number, ring in enumerate(rings)}
        self._received = dict.fromkeys(rings, 0)
        self._stop = False
        output.write(pcapng.section(f"vhostpci-guest {__version__}"))
        for ring in rings:
            to_master = ring % 2 == _TO_MASTER
            queue = f"{'rx' if to_master else 'tx'}{ring // 2}"
            way = "to the master" if to_master else "from the master"
            text = f"vring {ring} of {name}, {way}"
            output.write(pcapng.interface(f"{name}-{queue}", text, self._snaplen))

    def run(self, connection: Any) -> None:
        """Capture until a signal, the count, or the end of the rings.

        Raises:
            Unusable: the agent has ended the capture.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        connection.setblocking(False)
        over = False
        while not self._stop and not over:
            # Before the packets: those that came until the end are still there.
            over = _is_over(connection)
            for block in self._blocks():
                self._output.write(block)
                if self._stop:
                    break
            time.sleep(0 if self._stop else _PAUSE)
        self._write_statistics()
        if over and not self._stop:
            raise Unusable(
                "the capture ends: the agent, or its rings, have ended", code="G017"
            )

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True
        self._output.end_soon()

    def _blocks(self) -> Iterator[bytes]:
        for pair, reader in enumerate(self._readers):
            for packet in reader.read():
                ring = 2 * pair + packet.ring % 2
                if ring in self._interfaces:
                    yield self._block(ring, packet)
                if self._stop:
                    return

    def _block(self, ring: int, packet: Packet) -> bytes:
        self._received[ring] += 1
        if self._count is not None and sum(self._received.values()) >= self._count:
            self._stop = True
        # As with the TAP: what comes from the master comes in.
        outbound = ring % 2 == _TO_MASTER
        return pcapng.packet(
            self._interfaces[ring],
            packet.time_ns,
            packet.frame[: self._snaplen],
            packet.length - len(packet.header),
            pcapng.OUTBOUND if outbound else pcapng.INBOUND,
            pcapng.header_text(packet.header),
        )

    def _write_statistics(self) -> None:
        lost: list[int | None] = [reader.lost for reader in self._readers]
        now = time.time_ns()
        for ring, number in self._interfaces.items():
            pair = ring // 2
            received = self._received[ring]
            block = pcapng.statistics(
                *(number, now, received, lost[pair]),
                comment="dropped: of both rings of the pair" if lost[pair] else "",
            )
            self._output.write(block)
            lost[pair] = None  # said once
        if missing := sum(reader.lost for reader in self._readers):
            print(
                f"vhostpci-guest: {sum(self._received.values())} packets captured, "
                f"{missing} missed: they were overwritten before they could be read",
                file=sys.stderr,
            )


def _is_over(connection: Any) -> bool:
    """Whether the agent has closed the connection, and so the capture."""
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
