# SPDX-License-Identifier: Apache-2.0
"""QEMU's conventions for back-ends: vhost-user.rst, "Backend program conventions".

Tools ask with `--print-capabilities` what this back-end can do, and start it with
`--socket-path` or `--fd` and no command.
"""

import argparse
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

# QEMU's docs/interop/vhost-user.json: `type` is the kind of device.  The optional
# features that it lists for back-ends are of GPU, input and block devices.
CAPABILITIES = {"type": "net", "features": []}


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        help="print what this back-end can do, as JSON, and exit",
    )


def with_command(words: Sequence[str]) -> Sequence[str]:
    """Return the words with the command that they leave out by convention.

    A tool that starts us so names no device: its name is that of the socket, or of the
    descriptor.  The master is the tool's, and brings its memory.
    """
    if not words or not words[0].startswith("-") or "run" in words:
        return words
    given = dict(pairwise([*words, ""]))
    given |= dict(word.split("=", 1) for word in words if "=" in word)
    name = _name(given.get("--socket-path", ""), given.get("--fd", ""))
    if not name:
        return words
    mode = [] if {"--mode", "--memory"} & given.keys() else ["--mode", "attach"]
    return ["run", name, *mode, *words]


def _name(path: str, fd: str) -> str:
    """Return the name of a device at a socket, or at a descriptor; "" for neither."""
    if fd:
        return f"fd{fd}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem).lstrip("._-")[:64]


class _PrintCapabilities(argparse.Action):
    """Print the capabilities and exit, even if the rest of the line is wrong."""

    # QEMU's vhost-user.rst, "Backend program conventions": with this option a back-end
    # should ignore all other options and arguments.  An action runs while argparse
    # still reads the line, before it misses the COMMAND.

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(json.dumps(CAPABILITIES))
        parser.exit()
