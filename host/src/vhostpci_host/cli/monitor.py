# SPDX-License-Identifier: Apache-2.0
"""The command `monitor`: what happens to the devices, one event a line.

It outlives the daemon: when that ends, it says so, and connects to the next one.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from vhostpci_shared.terminal import Styled, Terminal, add_color
from vhostpci_shared.units import confined

from ..config import options
from ..config.device import daemon_control
from ..daemon import control_client
from ..errors import HostError, NoAnswer, NoDaemon
from ..interfaces import Json
from . import vms
from .arguments import add_name, run_dir

PAUSE = 0.5
"""Seconds between two looks for a daemon, once there was one."""
LOST = "connection-lost"
"""The event that is not the daemon's: it has ended, or we were too slow for it."""


def add_monitor(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The present state comes first.  The command goes on when the daemon is "
        "started again.  docs/events.md has all events."
    )
    add_name(parser, nargs="?")
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument(
        "-j", "--json", action="store_true", help="print a JSON object for each event"
    )
    parser.add_argument(
        "--once", action="store_true", help="print the present state, and end"
    )
    add_color(parser)
    parser.set_defaults(run=_monitor)


def _monitor(args: argparse.Namespace) -> None:
    directory = run_dir(args)
    path = (
        directory / f"{args.name}.control" if args.name else daemon_control(directory)
    )
    request = {"command": "monitor"} | ({"name": args.name} if args.name else {})
    terminal = Terminal.of(color=args.color)
    try:
        for event in _events(path, request):
            text = json.dumps(event) if args.json else line(event, terminal)
            # At once: a script waits for it at the other end of a pipe.
            print(text, flush=True)
            if args.once and event["event"] == "listening":
                return
    except KeyboardInterrupt:
        # The usual end.  A traceback would look like a failure.
        return


def _events(path: Path, request: Json) -> Iterator[Json]:
    """Yield the events of the daemon, and of those after it.

    Raises:
        HostError: there is no daemon at the start, or it knows no such device.
    """
    try:
        yield from map(_named, control_client.follow(path, request))
    except NoDaemon:
        raise HostError(
            f"no daemon at {path}: start it, or see --run-dir; of a daemon that serves "
            "one device give the device's NAME",
            code="H012",
        ) from None
    except NoAnswer:
        pass  # it has ended at this moment
    while True:
        yield {"time": round(time.time(), 3), "event": LOST}
        yield from _next_daemon(path, request)


def _next_daemon(path: Path, request: Json) -> Iterator[Json]:
    """Wait for the next daemon, and yield its events."""
    while True:
        try:
            yield from map(_named, control_client.follow(path, request))
            return
        # A daemon that ends while it is asked gives no answer.
        except (NoDaemon, NoAnswer):
            time.sleep(PAUSE)


def _named(event: Json) -> Json:
    """Return an event with the name of the VM that it is about."""
    if "pid" in event and event["event"] != "daemon":
        return {**event, "name": vms.look(event["pid"]).name}
    if "master_pid" in event:
        return vms.add_names(event)
    return event


_STYLES = {
    "device-failed": "bad",
    "mismatch": "bad",
    LOST: "bad",
    "daemon-ends": "warn",
    "carrier-off": "warn",
    "rings-stopped": "warn",
    "rings-started": "good",
    "carrier-on": "good",
}


def line(event: Json, terminal: Terminal) -> str:
    """Return the line for people of an event."""
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    name = event["event"]
    words = [
        terminal.paint(Styled(at, "dim")),
        terminal.paint(Styled(event.get("device", "-"), "name")),
        terminal.paint(Styled(name, _STYLES.get(name, "link"))),
        *(terminal.paint(text) for text in _values(event)),
    ]
    return "  ".join(words)


def _values(event: Json) -> Iterator[str]:
    for key, value in event.items():
        if key in ("time", "event", "device") or value in (None, "", []):
            continue
        if key == "confined":
            text = confined(value)
        else:
            text = " ".join(value) if isinstance(value, list) else str(value)
        yield f"{key}={text}"
