# SPDX-License-Identifier: Apache-2.0
"""The command line's side of a control socket."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from ..errors import HostError, NoDaemon, explain

ASK_TIMEOUT = 5.0


def ask(path: Path, request: dict[str, Any], timeout: float = ASK_TIMEOUT) -> Any:
    """Send a request to the daemon behind control socket `path`; return its answer.

    Raises:
        HostError: there is no daemon, or it cannot do what was asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoDaemon(
                f"no daemon at {path}: start it, or see --run-dir"
            ) from error
        except OSError as error:
            raise explain("ask the daemon at", path, error) from error
        except ValueError as error:
            raise HostError(f"the daemon at {path} gave no answer: {error}") from error
    if not answer.get("ok"):
        raise HostError(str(answer.get("error")))
    return answer["result"]
