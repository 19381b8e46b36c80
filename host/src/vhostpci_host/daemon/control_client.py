# SPDX-License-Identifier: Apache-2.0
"""Ask a daemon through its control socket, for the command line."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import HostError, NoAnswer, NoDaemon, explain

CONNECT_PAUSE = 0.01
"""Seconds between two attempts to connect while too many others do."""
_SUFFIX = ".control"
"""What follows a device's name in that of its control socket."""
ASK_TIMEOUT = 5.0
"""Seconds for each step: connecting, sending, and waiting for the answer."""


def ask(path: Path, request: dict[str, Any], timeout: float = ASK_TIMEOUT) -> Any:
    """Send a request to the daemon behind control socket `path`; return its answer.

    Raises:
        NoDaemon: no daemon listens on the socket.
        HostError: the daemon does not answer, or refuses the request.
    """
    with _asked(path, timeout) as connection:
        _connect(connection, path, timeout)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as lines:
            line = lines.readline()
    return _result(path, line)


@contextmanager
def _asked(path: Path, timeout: float) -> Iterator[socket.socket]:
    """Give a socket to ask the daemon with; what fails is told as a user needs it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            yield connection
        # FileNotFoundError: there is no socket file.  ConnectionRefusedError: there is
        # one that a killed daemon left behind.
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoDaemon(
                f"no daemon at {path}: start it, or see --run-dir", code="H061"
            ) from error
        except TimeoutError as error:
            raise HostError(
                f"the daemon at {path} does not answer within {timeout:g} s: it hangs, "
                "or is stopped, or the machine is overloaded; look at its log",
                code="H062",
            ) from error
        except ConnectionError as error:
            text = str(explain("ask the daemon at", path, error))
            raise NoAnswer(text, code="H063") from error
        except OSError as error:
            raise explain("ask the daemon at", path, error) from error


def follow(
    path: Path, request: dict[str, Any], timeout: float = ASK_TIMEOUT
) -> Iterator[dict[str, Any]]:
    """Yield the lines that follow the answer to a request, until the daemon ends.

    Raises:
        NoDaemon: no daemon listens on the socket.
        HostError: the daemon refuses the request, or sends what is no answer.
    """
    with _asked(path, timeout) as connection:
        _connect(connection, path, timeout)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as lines:
            _result(path, lines.readline())
            connection.settimeout(None)  # nothing may happen for days
            for line in lines:
                # The last one may be half a line: the daemon was killed.
                with suppress(ValueError):
                    yield json.loads(line)


def devices(run_dir: Path) -> list[str]:
    """Return the devices that have a control socket in a directory.

    Raises:
        HostError: this user may not look into the directory.
    """
    # Path.glob() would find nothing in a directory that this user may not read, as if
    # there were no devices.
    try:
        files = os.listdir(run_dir)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explain("look into", run_dir, error) from error
    return [name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)]


def _result(path: Path, line: bytes) -> Any:
    """Return the result that an answer of the daemon's carries.

    Raises:
        HostError: it carries the reason why there is none; or it is no answer.
    """
    if not line:
        raise NoAnswer(
            f"the daemon at {path} closed the connection without an answer: ask again, "
            "or look at its log",
            code="H064",
        )
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise HostError(
            f"the daemon at {path} sent no valid JSON: {error}", code="H065"
        ) from error
    match answer:
        case {"ok": True, "result": result}:
            return result
        case {"ok": False, "error": str(reason)} if reason.startswith("no command "):
            # Each of our commands asks the kind of socket that has it.
            raise HostError(
                f"the daemon at {path} is of an earlier version than this program: "
                f"{reason}. Replace it: vhostpci-host restart{_name(path)}",
                code="H066",
            )
        case {"ok": False, "error": str(reason)}:
            raise HostError(reason, code=_code(answer))
    raise HostError(
        f"the program at {path} sent JSON that is no answer of a vhostpci-host: see "
        "which program it is (ss -xlp), or see --run-dir",
        code="H067",
    )


def _name(path: Path) -> str:
    """Return the argument by which `restart` finds a control socket."""
    # That of the daemon of a file is found without one.
    return f" {path.name.removesuffix(_SUFFIX)}" if path.suffix == _SUFFIX else ""


def _code(answer: dict[str, Any]) -> str:
    """Return the code of a refusal; a daemon of an earlier version gives none."""
    code = answer.get("code")
    return code if isinstance(code, str) else ""


def _connect(connection: socket.socket, path: Path, timeout: float) -> None:
    """Connect, as soon as there is room among those that wait to be accepted.

    Raises:
        TimeoutError: there was none for `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            connection.connect(os.fspath(path))
            return
        # EAGAIN: for a Unix socket with a time limit, connect() itself does not wait.
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError from None
            time.sleep(CONNECT_PAUSE)
