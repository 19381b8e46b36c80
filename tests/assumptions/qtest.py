# SPDX-License-Identifier: Apache-2.0
"""A stock QEMU whose guest is the test: QEMU's qtest protocol, and an ivshmem server.

No vCPU runs (-S): the test programs the PCI device through I/O ports and memory
as a guest would (QEMU, docs "QTest Device Emulation Testing Framework").
"""

import fcntl
import os
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from tests.vm import qemu

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
SLOT = 5
BAR0_ADDRESS = 0xE0000000
BAR2_ADDRESS = 0x1_0000_0000_00
TIMEOUT = 60.0


class Qtest:
    """One QEMU with an ivshmem-doorbell device in slot 5 of its root bus."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines

    def command(self, text: str) -> list[str]:
        """Send one qtest command; return the words after its OK."""
        self._lines.write(text + "\n")
        self._lines.flush()
        while True:
            words = self._lines.readline().split()
            if not words:
                raise ConnectionError(f"QEMU went away at {text!r}")
            if words[0] != "IRQ":
                assert words[0] == "OK", words
                return words[1:]

    def config_read(self, offset: int) -> int:
        """Read 32 bits of the device's configuration space."""
        self.command(f"outl {CONFIG_ADDRESS:#x} {self._config(offset):#x}")
        return int(self.command(f"inl {CONFIG_DATA:#x}")[0], 16)

    def config_write(self, offset: int, value: int) -> None:
        """Write 32 bits of the device's configuration space."""
        self.command(f"outl {CONFIG_ADDRESS:#x} {self._config(offset):#x}")
        self.command(f"outl {CONFIG_DATA:#x} {value:#x}")

    @staticmethod
    def _config(offset: int) -> int:
        return 0x8000_0000 | SLOT << 11 | offset

    def enable(self) -> None:
        """Place BAR 0 and BAR 2, and switch memory decoding on."""
        self.config_write(0x10, BAR0_ADDRESS)
        self.config_write(0x18, BAR2_ADDRESS & 0xFFFFFFFF)
        self.config_write(0x1C, BAR2_ADDRESS >> 32)
        self.config_write(0x04, 0x0002)

    def bar2_size(self) -> int:
        """Ask for BAR 2's size the way PCI firmware does."""
        self.config_write(0x18, 0xFFFFFFFF)
        self.config_write(0x1C, 0xFFFFFFFF)
        mask = self.config_read(0x1C) << 32 | self.config_read(0x18) & ~0xF
        return 2**64 - mask

    def doorbell(self, peer: int, vector: int) -> None:
        """Store to the doorbell register."""
        self.command(f"writel {BAR0_ADDRESS + 12:#x} {peer << 16 | vector:#x}")

    def read_bar2(self, offset: int, size: int) -> bytes:
        """Read the window as the guest would."""
        answer = self.command(f"read {BAR2_ADDRESS + offset:#x} {size:#x}")
        return bytes.fromhex(answer[0].removeprefix("0x"))


class Server:
    """The raw side of an ivshmem server: one message, at most one descriptor."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, value: int, fd: int | None = None) -> None:
        """Send one message ("Device Specification for Inter-VM shared memory")."""
        fds = [] if fd is None else [fd]
        socket.send_fds(self.connection, [struct.pack("<q", value)], fds)

    def hello(self, own_id: int, memory: int, vectors: list[int]) -> None:
        """Send a whole handshake: version, own ID, memory, then own eventfds."""
        self.send(0)
        self.send(own_id)
        self.send(-1, memory)
        for vector in vectors:
            self.send(own_id, vector)

    def wait_read(self) -> None:
        """Wait until QEMU has read all that was sent (unix(7), SIOCOUTQ)."""
        deadline = time.monotonic() + TIMEOUT
        while fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)) != bytes(4):
            assert time.monotonic() < deadline, "QEMU does not read"
            time.sleep(0.0001)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Machine:
    """A QEMU that has connected to our ivshmem socket, and waits for us."""

    process: subprocess.Popen[bytes]
    server: Server
    log: Path
    qtest: socket.socket

    def wait(self) -> tuple[int, str]:
        """Wait for its end; return exit status and log."""
        return self.process.wait(timeout=TIMEOUT), self.log.read_text()

    @contextmanager
    def guest(self) -> Iterator[Qtest]:
        """Act as its guest, once the handshake is done."""
        connection, _ = self.qtest.accept()
        with connection, connection.makefile("rw") as lines:
            yield Qtest(lines)


@contextmanager
def started(directory: Path, vectors: int) -> Iterator[Machine]:
    """Start a QEMU up to the ivshmem handshake, in which it blocks."""
    log = directory / "qemu.log"
    with ExitStack() as stack:
        ivshmem = stack.enter_context(_listener(directory / "ivshmem"))
        qtest = stack.enter_context(_listener(directory / "qtest"))
        output = stack.enter_context(log.open("wb"))
        command = _command(directory, vectors)
        process = stack.enter_context(subprocess.Popen(command, stderr=output))
        stack.callback(process.kill)
        connection, _ = ivshmem.accept()
        server = stack.enter_context(Server(connection))
        yield Machine(process, server, log, qtest)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(TIMEOUT)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _command(directory: Path, vectors: int) -> list[str]:
    return [
        *(qemu.binary(), "-M", "q35", "-nodefaults", "-display", "none"),
        *("-accel", "tcg", "-S", "-m", "128M"),
        *("-qtest", f"unix:{directory}/qtest"),
        *("-chardev", f"socket,id=c,path={directory}/ivshmem"),
        *("-device", f"ivshmem-doorbell,chardev=c,vectors={vectors},addr={SLOT}"),
    ]


def memory(size: int) -> int:
    """Return a memfd of `size` bytes; the caller closes it."""
    fd = os.memfd_create("window")
    os.ftruncate(fd, size)
    return fd
