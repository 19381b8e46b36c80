# SPDX-License-Identifier: Apache-2.0
"""The command `trace`: what a device and its front-ends say to each other."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..config import options
from ..daemon import control_client
from ..interfaces import Json
from ..vhost_user import spoken
from .arguments import add_name, run_dir

PAUSE = 0.2
"""Seconds between two questions for what is new."""


def add_trace(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Prints the last 256 messages that the daemon has kept, and then each new one "
        "until Ctrl-C.  -> is from the front-end, <- from the daemon."
    )
    add_name(parser)
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument(
        "--once", action="store_true", help="print what there is, and end"
    )
    parser.add_argument(
        "-j", "--json", action="store_true", help="print JSON, an object a line"
    )
    parser.set_defaults(run=_trace)


def _trace(args: argparse.Namespace) -> None:
    path = run_dir(args) / f"{args.name}.control"
    show = _as_json if args.json else _as_text
    # Ctrl-C is how one ends this command: no error, and no traceback.
    with suppress(KeyboardInterrupt):
        for entry in _entries(path, args.name, once=args.once):
            print(show(entry))
            sys.stdout.flush()


def _entries(path: Path, name: str, *, once: bool) -> Iterator[Json]:
    """Yield what is said, the oldest first; without end unless `once`."""
    following, pid = 0, None
    while True:
        request = {"command": "conversation", "name": name, "since": following}
        found = control_client.ask(path, request)
        if pid not in (None, found["pid"]):
            yield {"time": time.time(), "event": f"daemon (pid {found['pid']}) goes on"}
            following = 0
            pid = found["pid"]
            continue
        pid = found["pid"]
        entries = found["entries"]
        missing = (entries[0]["number"] if entries else found["next"]) - following
        if following and missing:
            yield {"time": time.time(), "event": f"{missing} messages are missing here"}
        yield from entries
        following = found["next"]
        if once:
            return
        time.sleep(PAUSE)


def _as_json(entry: Json) -> str:
    return json.dumps(spoken.describe(entry))


def _as_text(entry: Json) -> str:
    moment = time.localtime(entry["time"])
    milliseconds = int(entry["time"] % 1 * 1000)
    stamp = f"{time.strftime('%H:%M:%S', moment)}.{milliseconds:03d}"
    return f"{stamp} {spoken.text(entry)}"
