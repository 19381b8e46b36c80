# SPDX-License-Identifier: Apache-2.0
"""The control socket's protocol: one JSON object a line, and one for an answer.

    {"command": "status"}      {"ok": true, "result": {...}}
    {"command": "dance"}       {"ok": false, "error": "no command 'dance'"}

A command is a function in `COMMANDS`, called with the devices and the request.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from .device import Device
from .errors import HostError
from .status import describe

MAX_LINE = 65536

Devices = Mapping[str, Device]
Request = Mapping[str, Any]


def status(devices: Devices, request: Request) -> Any:
    """Describe the device of the request's "name", or the only one."""
    return describe(_device(devices, request))


def _device(devices: Devices, request: Request) -> Device:
    name = request.get("name")
    if name is None and len(devices) == 1:
        return next(iter(devices.values()))
    device = devices.get(name) if isinstance(name, str) else None
    if device is None:
        raise HostError(f"no device {name!r}; there are: {', '.join(devices)}")
    return device


COMMANDS: dict[str, Callable[[Devices, Request], Any]] = {"status": status}


def answer(devices: Devices, line: bytes) -> bytes:
    """Return the answer to one line."""
    try:
        result = {"ok": True, "result": _run(devices, line)}
    except HostError as error:
        result = {"ok": False, "error": str(error)}
    return json.dumps(result).encode() + b"\n"


def _run(devices: Devices, line: bytes) -> Any:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise HostError("a request is a line with one JSON object")
    name = request.get("command")
    command = COMMANDS.get(name) if isinstance(name, str) else None
    if command is None:
        raise HostError(f"no command {name!r}; there are: {', '.join(COMMANDS)}")
    return command(devices, request)
