# SPDX-License-Identifier: Apache-2.0
"""Runs commands in a test guest for the harness outside.

One JSON object a line on a virtio-serial port.  The first line of each boot is
our own, ``{"hello": BOOT_ID, "kernel": RELEASE}``: by it the harness sees a guest
that is up, or that rebooted under its hands.  Then each request ``{"id": N, "op":
NAME, ...}`` gets one answer ``{"id": N, ...}``, in the order in which they finish.

It imports as little as it can: under emulation, pathlib and typing take a fifth of a
second of each boot.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import socket
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

    Answer = dict[str, Any]

PORT_NAME = "vhostpci.test"


class Server:
    """The requests' handlers, and the background jobs they started."""

    def __init__(self) -> None:
        self._jobs: dict[int, subprocess.Popen[bytes]] = {}
        self._handlers: dict[str, Callable[..., Answer]] = {
            "run": self.run,
            "spawn": self.spawn,
            "wait": self.wait,
            "signal": self.signal,
            "put": self.put,
            "get": self.get,
            "peek": self.peek,
            "ask": self.ask,
            "reboot": self.reboot,
        }

    def answer(self, request: dict[str, Any]) -> Answer:
        """The answer to one request; a failure becomes its ``error``."""
        number, name = request.pop("id"), request.pop("op")
        try:
            return {"id": number, **self._handlers[name](**request)}
        except Exception as error:
            return {"id": number, "error": f"{type(error).__name__}: {error}"}

    def run(self, argv: list[str], limit: float) -> Answer:
        """Run a command to its end; after ``limit`` it is killed, rc is None."""
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = process.communicate(timeout=limit)
                rc: int | None = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                rc = None
        return {"rc": rc, "stdout": _text(out), "stderr": _text(err)}

    def spawn(self, argv: list[str], log: str) -> Answer:
        """Start a background job with its output in the file ``log``."""
        with open(log, "ab") as file:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._jobs[process.pid] = process
        return {"job": process.pid}

    def wait(self, job: int, limit: float) -> Answer:
        """The job's exit status, or None if it still runs after ``limit``."""
        try:
            return {"rc": self._jobs[job].wait(limit)}
        except subprocess.TimeoutExpired:
            return {"rc": None}

    def signal(self, job: int, number: int) -> Answer:
        """Send a signal to a job, to it alone."""
        self._jobs[job].send_signal(number)
        return {}

    def put(self, path: str, data: str, mode: int) -> Answer:
        """Write a file."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
        os.chmod(path, mode)
        return {}

    def get(self, path: str) -> Answer:
        """Read a file."""
        return {"data": base64.b64encode(_bytes(path)).decode()}

    def peek(self, path: str) -> Answer:
        """Read a text file that need not be there, as the text is None then.

        So is a file of sysfs that cannot be read now, such as the carrier of a network
        interface that is down.
        """
        try:
            return {"text": _text(_bytes(path))}
        except OSError:
            return {"text": None}

    def ask(self, directory: str) -> Answer:
        """Connect to each socket in a directory; return what each one says.

        This is what `vhostpci-guest status` does, without a second and more for the
        start of an interpreter under emulation.
        """
        found = {}
        for path in sorted(glob.glob(f"{directory}/*.sock")):
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(path)
                    said = b"".join(iter(lambda: sock.recv(65536), b""))
                except (ConnectionError, FileNotFoundError):
                    continue  # its agent was killed, or ends just now
            if said:  # else it ended before it answered
                found[os.path.basename(path)] = _text(said)
        return {"answers": found}

    def reboot(self) -> Answer:
        """Reboot as a machine does whose user space is down: drivers shut down."""
        threading.Timer(0.1, os.system, ["busybox reboot -f"]).start()
        return {}


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _find_port() -> str:
    """The device node of our port: no udev here that would link its name."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for path in glob.glob("/sys/class/virtio-ports/*/name"):
            if _text(_bytes(path)).strip() == PORT_NAME:
                return f"/dev/{path.split('/')[-2]}"
        time.sleep(0.02)
    sys.exit(f"no virtio-serial port is named {PORT_NAME}")


def _read_line(port: BinaryIO) -> bytes:
    """The next line; the port reads as ended while no one is connected."""
    line = b""
    while not line.endswith(b"\n"):
        line += port.readline()
        if not line:
            time.sleep(0.05)
    return line


def main() -> None:
    """Serve requests, each on a separate thread, until the guest goes."""
    server = Server()
    lock = threading.Lock()
    with open(_find_port(), "r+b", buffering=0) as port:

        def send(answer: Answer) -> None:
            data = json.dumps(answer).encode() + b"\n"
            with lock:
                while data:
                    data = data[port.write(data) :]

        def serve(request: dict[str, Any]) -> None:
            send(server.answer(request))

        boot_id = _text(_bytes("/proc/sys/kernel/random/boot_id")).strip()
        # Whatever a guest before us left unfinished ends with an empty line.
        port.write(b"\n")
        send({"hello": boot_id, "kernel": os.uname().release})
        while True:
            request = json.loads(_read_line(port))
            threading.Thread(target=serve, args=[request], daemon=True).start()


if __name__ == "__main__":
    main()
