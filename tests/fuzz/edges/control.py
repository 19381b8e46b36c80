# SPDX-License-Identifier: Apache-2.0
"""Hostile lines at a control socket.

Devices are only checked, and not served: their options name files.
"""

import asyncio
import json
from pathlib import Path

from tests.fuzz.edges.choices import Choices
from vhostpci_host.config import options
from vhostpci_host.config.device import check_name, conflicts
from vhostpci_host.daemon.control import Request, answer, given_options

NAMES = ("command", "name", "options", "add", "status", "x", *options.OPTIONS)
TEXTS = ("", "16M", "attach", "0666", "/run/x", "on", "-1", "1e9", "\0", "é" * 200)


async def _status(_: Request) -> dict[str, object]:
    return {"state": "ok"}


async def _add(request: Request) -> None:
    name = request.get("name")
    check_name(name if isinstance(name, str) else "")
    given = given_options(request.get("options", {}))
    given[options.RUN_DIR.name] = "/nonexistent"
    device = options.device(str(name), given)
    list(conflicts([device, device]))


COMMANDS = {"status": _status, "add": _add}


def _value(choices: Choices, depth: int) -> object:
    kind = choices.below(9 if depth else 7)
    if kind == 0:
        return choices.of(TEXTS)
    if kind == 1:
        return choices.raw(choices.below(40)).decode("latin-1")
    if kind < 5:
        return (None, choices.flag(), choices.number())[kind - 2]
    if kind < 7:
        return choices.of(NAMES)
    items = [_value(choices, depth - 1) for _ in range(choices.below(6))]
    if kind == 7:
        return items
    return {choices.of(NAMES): item for item in items}


def _line(choices: Choices) -> bytes:
    kind = choices.below(4)
    if kind == 0:
        return choices.raw(600)
    if kind == 1:
        return json.dumps(_value(choices, 3)).encode()
    given = {choices.of(tuple(options.OPTIONS)): _text(choices) for _ in range(8)}
    request = {"command": "add", "name": _text(choices), "options": given}
    return json.dumps(request).encode()


def _text(choices: Choices) -> object:
    return choices.of(TEXTS) if choices.flag() else _value(choices, 1)


def make() -> asyncio.Runner:
    """Return what runs the answers."""
    return asyncio.Runner()


def run(runner: asyncio.Runner, data: bytes) -> None:
    """Have a line answered: by one line of JSON, and by no error of ours."""
    found = runner.run(answer(COMMANDS, _line(Choices(data))))
    assert found.endswith(b"\n")
    said = json.loads(found)
    assert isinstance(said["ok"], bool)
    assert "please report it" not in str(said.get("error")), said
    assert not Path("/nonexistent").exists()
