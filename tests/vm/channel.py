# SPDX-License-Identifier: Apache-2.0
"""The harness's connection to a guest's command server (guest/server.py)."""

import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from tests.vm.patience import Patience

# How much longer than the guest's own time limit an answer may take to get here.
GRACE = 20.0

Answer = dict[str, Any]


class GuestError(Exception):
    """A guest did not do what a test asked for; tests do not catch this error."""


class GuestGoneError(GuestError):
    """The guest rebooted, or its QEMU ended, while a request was under way."""


class Channel:
    """Requests to one guest, from any thread, any number at a time.

    It outlives a reboot of the guest: each boot announces itself, and the requests to
    the boot before it fail.
    """

    def __init__(
        self, path: Path, *, timeout: float, patience: Callable[[float], Patience]
    ) -> None:
        self._patience = patience
        self._socket = _connect(path, patience(timeout))
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Answer]] = {}
        self._boots: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connection; requests without an answer fail."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def wait_boot(self, timeout: float) -> Answer:
        """Return the announcement of the next boot, once for each boot."""
        patience = self._patience(timeout)
        while not self._closed and not patience.is_over():
            try:
                return self._boots.get(timeout=0.2)
            except queue.Empty:
                continue
        why = "QEMU ended" if self._closed else f"no answer within {patience}"
        raise GuestGoneError(f"guest did not come up: {why}")

    def call(self, op: str, *, timeout: float, **arguments: Any) -> Answer:
        """Have the guest do ``op``, which takes it ``timeout`` seconds at most."""
        patience = self._patience(timeout + GRACE)
        answer = _result(self._send(op, arguments), patience)
        if answer is None:
            raise GuestError(f"{op}: no answer within {patience}: {arguments}")
        if "error" in answer:
            raise GuestError(f"{op}: {answer['error']}: {arguments}")
        return answer

    def _send(self, op: str, arguments: Answer) -> Future[Answer]:
        number = next(self._numbers)
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise GuestGoneError(f"{op}: QEMU ended")
            self._pending[number] = future
            request = {"id": number, "op": op, **arguments}
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        return future

    def _receive(self) -> None:
        with self._socket.makefile("rb") as lines:
            try:
                for line in lines:
                    self._dispatch(line)
            except OSError:
                pass  # as good as the end of the file
        self._fail_pending("QEMU ended", closed=True)

    def _dispatch(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # an empty line, or one that a dying guest did not finish
        if "hello" in message:
            self._fail_pending("guest rebooted", closed=False)
            self._boots.put(message)
            return
        with self._lock:
            future = self._pending.pop(message["id"], None)
        if future:
            future.set_result(message)

    def _fail_pending(self, why: str, *, closed: bool) -> None:
        with self._lock:
            self._closed = closed
            pending = [*self._pending.values()]
            self._pending.clear()
        for future in pending:
            future.set_exception(GuestGoneError(why))


def _result(future: Future[Answer], patience: Patience) -> Answer | None:
    """Wait for an answer; return None if the guest had its time and gave none."""
    while True:
        try:
            return future.result(0.5)
        except FutureTimeout:
            if patience.is_over():
                return None


def _connect(path: Path, patience: Patience) -> socket.socket:
    """Connect to a socket that QEMU is about to make."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if patience.is_over():
                raise GuestGoneError(
                    f"QEMU did not open {path} within {patience}"
                ) from None
            time.sleep(0.02)
        else:
            return connection
