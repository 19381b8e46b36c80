# SPDX-License-Identifier: Apache-2.0
"""Serves metrics by HTTP, on an address of this machine or a Unix socket.

It runs in a separate process: neither the daemon, which moves all doorbells under a
filter of system calls, nor the agent's loop parses what an HTTP client sends.
"""

import argparse
import errno
import logging
import os
import signal
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import listening_socket
from .errors import Coded
from .metrics import CONTENT_TYPE

log = logging.getLogger(__name__)

UNIX = "unix:"
TIMEOUT = 10.0
"""Seconds for a client to send its request, and to read the answer."""
CLIENTS = 16
"""Clients that are served at one time; others wait."""


class BadAddress(Coded, ValueError):
    """A text names no address to listen at."""


class NotServed(Coded):
    """The address cannot be listened at; the text says why, and what to do."""


def parse_address(text: str) -> str | tuple[str, int]:
    """Return the path of `unix:PATH`, or host and port of `ADDRESS:PORT`.

    Raises:
        BadAddress: it is neither.
    """
    if text.startswith(UNIX):
        if path := text.removeprefix(UNIX):
            return path
        raise BadAddress(f"{text!r}: write unix:PATH", code="S019")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BadAddress(
            f"{text!r}: write ADDRESS:PORT, as 127.0.0.1:9700, or unix:PATH",
            code="S020",
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Handler(BaseHTTPRequestHandler):
    server: "MetricsServer"
    server_version = "vhostpci"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404)
            return
        try:
            text = self.server.collect().encode()
        except Exception as error:
            # One scrape fails, with the reason for who scrapes; the next may not.
            log.warning("no metrics: %s", error)
            self.send_error(500, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        # What a client sent, which may be anything: never to a terminal as it is.
        log.debug("metrics: %s", ascii(format % args))

    def address_string(self) -> str:
        return "client"


class MetricsServer(socketserver.ThreadingMixIn, HTTPServer):
    """Answers GET /metrics.

    Args:
        address: where; a path, or host and port.
        collect: returns the text; it may raise what it likes.

    Raises:
        OSError: the address cannot be listened at.
    """

    daemon_threads = True

    def __init__(
        self, address: str | tuple[str, int], collect: Callable[[], str]
    ) -> None:
        self.collect = collect
        self._room = threading.BoundedSemaphore(CLIENTS)
        # The user's connection settings, such as HTTPServer's of a name, need no look
        # at DNS, which may take seconds.
        self.server_name, self.server_port = "", 0
        if isinstance(address, str):
            self.address_family = socket.AF_UNIX
        elif ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        if self.address_family != socket.AF_UNIX:
            socketserver.TCPServer.server_bind(self)

    def server_activate(self) -> None:
        if self.address_family != socket.AF_UNIX:
            super().server_activate()
            return
        path = Path(str(self.server_address))
        self.socket.close()
        self.socket = listening_socket.listen(
            path, lambda: remove_dead(path), backlog=self.request_queue_size
        )

    def process_request(self, request: object, client_address: object) -> None:
        self._room.acquire()
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except RuntimeError:
            # There is no room for a thread now: this client gets no answer.
            self._room.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a client of the metrics is gone", exc_info=True)


def remove_dead(path: Path) -> None:
    """Remove the socket of a process that was killed; leave all else alone.

    Raises:
        OSError: something else is there, or the process of the socket lives.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(os.fspath(path))
                except ConnectionRefusedError:
                    path.unlink(missing_ok=True)
                    return
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where metrics go, and what they mean."""
    parser.epilog = (
        "Without --textfile and --listen the metrics are printed.  --listen serves "
        "until SIGINT or SIGTERM, without encryption or passwords: choose an address "
        "of 127.0.0.1, or a Unix socket."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--textfile",
        type=Path,
        metavar="FILE",
        help="write them to FILE, which node_exporter reads meanwhile: its name must "
        "end in .prom, in the directory of --collector.textfile.directory",
    )
    where.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="serve them by HTTP at ADDRESS:PORT or unix:PATH, under /metrics",
    )


def serve(text: str, collect: Callable[[], str]) -> None:
    """Serve metrics at an address until SIGINT or SIGTERM.

    Raises:
        BadAddress: the text names none.
        NotServed: it cannot be listened at.
    """
    # First: a signal that comes while the socket is made must remove it, too.
    signal.signal(signal.SIGTERM, _interrupt)
    with suppress(KeyboardInterrupt), _listening(text, collect) as server:
        log.info("metrics are at %s", text)
        server.serve_forever()


@contextmanager
def _listening(text: str, collect: Callable[[], str]) -> Iterator[MetricsServer]:
    """Listen at an address; remove its socket at the end.

    Raises:
        BadAddress, NotServed: as `serve` does.
    """
    address = parse_address(text)
    try:
        server = MetricsServer(address, collect)
    except OSError as error:
        raise NotServed(
            f"cannot serve metrics at {text}: {error.strerror or error}; choose "
            "another address, or look which program has it: ss -lxtp",
            code="S021",
        ) from None
    try:
        with server:
            yield server
    finally:
        if isinstance(address, str):
            Path(address).unlink(missing_ok=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
