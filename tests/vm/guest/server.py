# SPDX-License-Identifier: Apache-2.0
"""Runs commands in a test guest for the harness outside.

One JSON object a line on a virtio-serial port.  The first line of each boot is
our own, ``{"hello": BOOT_ID, "kernel": RELEASE}``: by it the harness sees a guest
that is up, or that rebooted under its hands.  Then each request ``{"id": N, "op":
NAME, ...}`` gets one answer ``{"id": N, ...}``, in the order in which they finish.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

PORT_NAME = "vhostpci.test"
Answer = dict[str, Any]


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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(base64.b64decode(data))
        Path(path).chmod(mode)
        return {}

    def get(self, path: str) -> Answer:
        """Read a file."""
        return {"data": base64.b64encode(Path(path).read_bytes()).decode()}

    def ask(self, directory: str) -> Answer:
        """Connect to each socket in a directory; return what each one says.

        This is what `vhostpci-guest status` does, without a second and more for the
        start of an interpreter under emulation.
        """
        found = {}
        for path in sorted(Path(directory).glob("*.sock")):
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(str(path))
                except (ConnectionRefusedError, FileNotFoundError):
                    continue  # its agent was killed, or has just ended
                found[path.stem] = _text(b"".join(iter(lambda: sock.recv(65536), b"")))
        return {"answers": found}

    def reboot(self) -> Answer:
        """Reboot as a machine does whose user space is down: drivers shut down."""
        threading.Timer(0.1, os.system, ["busybox reboot -f"]).start()
        return {}


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _find_port() -> str:
    """The device node of our port: no udev here that would link its name."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                return f"/dev/{name.parent.name}"
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

        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Whatever a guest before us left unfinished ends with an empty line.
        port.write(b"\n")
        send({"hello": boot_id, "kernel": os.uname().release})
        while True:
            request = json.loads(_read_line(port))
            threading.Thread(target=serve, args=[request], daemon=True).start()


if __name__ == "__main__":
    main()
