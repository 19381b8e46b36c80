# SPDX-License-Identifier: Apache-2.0
"""The commands that talk to a running daemon: `add`, `status` and so on."""

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vhostpci_shared.errors import told, with_code
from vhostpci_shared.terminal import Terminal, add_color

from ..config import options
from ..config.device import daemon_control
from ..daemon import control_client
from ..errors import HostError, NoAnswer, NoDaemon
from ..interfaces import UNPLUG
from . import print_status, vms
from .arguments import add_name, run_dir

RESTART, RESTART_POLL = 70.0, 0.05
"""Seconds for a successor to come, and between two looks."""


def add_add(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    options.add_to(parser, *options.OPTIONS.values())
    parser.set_defaults(run=_add)


def add_remove(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    options.add_to(parser, options.RUN_DIR)
    parser.set_defaults(run=_remove)


def add_reload(parser: argparse.ArgumentParser) -> None:
    options.add_to(parser, options.RUN_DIR)
    parser.set_defaults(run=_reload)


def add_list(parser: argparse.ArgumentParser) -> None:
    options.add_to(parser, options.RUN_DIR)
    _add_output(parser)
    parser.set_defaults(run=_list)


def add_status(parser: argparse.ArgumentParser) -> None:
    add_name(parser, "the device's name; without it, all devices", nargs="?")
    options.add_to(parser, options.RUN_DIR)
    _add_output(parser)
    parser.set_defaults(run=_status)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    add_color(parser)


def add_restart(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The successor is started first, from the packages that are installed now.  If "
        "it does not start within a minute, the daemon goes on as it was.  Masters and "
        "slaves notice nothing.  Without NAME it is the daemon of `run --config` that "
        "is replaced; with NAME, the one that serves this device."
    )
    add_name(parser, "the device that the daemon serves alone", nargs="?")
    options.add_to(parser, options.RUN_DIR)
    parser.set_defaults(run=_restart)


def _restart(args: argparse.Namespace) -> None:
    directory = run_dir(args)
    name = args.name
    path = directory / f"{name}.control" if name else daemon_control(directory)
    before = control_client.ask(path, {"command": "pid"})
    # No answer: it has made room.
    with suppress(NoAnswer):
        control_client.ask(path, {"command": "restart"}, RESTART)
    end = time.monotonic() + RESTART
    while (now := _serving(path)) in (None, before):
        if time.monotonic() > end:
            raise HostError(
                f"the daemon (pid {before}) has no successor after {RESTART:g} s; its "
                "log says why",
                code="H007",
            )
        time.sleep(RESTART_POLL)
    print(f"pid {before} made room for pid {now}")


def _serving(path: Path) -> int | None:
    """Return the process behind a control socket; None while it changes."""
    try:
        found: int = control_client.ask(path, {"command": "pid"})
    except HostError:
        return None
    return found


def _add(args: argparse.Namespace) -> None:
    given = options.texts(args)
    # --run-dir says where the daemon is.  It is no option of the new device, whose
    # sockets are in the daemon's directory.
    given.pop(options.RUN_DIR.name, None)
    _ask_daemon(args, {"command": "add", "name": args.name, "options": given})


def _remove(args: argparse.Namespace) -> None:
    _ask_daemon(args, {"command": "remove", "name": args.name})


def _reload(args: argparse.Namespace) -> None:
    answer = _ask_daemon(args, {"command": "reload"})
    for what in ("added", "changed", "removed"):
        if names := answer[what]:
            print(f"{what}: {', '.join(names)}")
    if failed := answer["failed"]:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise HostError(
            f"these devices cannot be served: {reasons}; the others are. Do what their "
            "reasons say, and reload again",
            code="H008",
        )


def _list(args: argparse.Namespace) -> None:
    rows = [vms.add_names(row) for row in _ask_daemon(args, {"command": "list"})]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        terminal = Terminal.of(color=args.color)
        print(print_status.table(rows, terminal) if rows else "no devices")


def _status(args: argparse.Namespace) -> None:
    directory = run_dir(args)
    if args.name:
        found = [ask_status(directory, args.name)]
        failed = 0
    else:
        found, failed = status_of_all(directory)
    found = [vms.add_to(one) for one in found]
    if args.json:
        # One object for a name, a list for all: a script need not unpack the first.
        print(json.dumps(found[0] if args.name else found, indent=2))
    elif found or not failed:
        terminal = Terminal.of(color=args.color)
        texts = [print_status.text(one, terminal) for one in found]
        print("\n\n".join(texts) or "no devices")
    if failed:
        raise HostError(
            f"the status of {failed} of the devices and daemons above is missing",
            code="H009",
        )


def status_of_all(directory: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the status of each device, and how many daemons did not answer.

    A daemon that hangs, or one that was killed and left its socket behind, must not
    hide the devices of the others: it gets a line on stderr.
    """
    found: list[dict[str, Any]] = []
    names, failed = set(control_client.devices(directory)), 0
    try:
        names |= _listed(directory)
    except HostError as error:
        text = f"{error}; the devices of this daemon that failed are missing here"
        print(f"vhostpci-host: {with_code(text, error.code)}", file=sys.stderr)
        failed += 1
    for name in sorted(names):
        try:
            found.append(ask_status(directory, name))
        except NoDaemon:
            # A daemon that ends removes the socket, and may do so while we look.  One
            # that is still there is of a daemon that was killed.
            if not (directory / f"{name}.control").exists():
                continue
            print(
                f"vhostpci-host: {name}: no daemon serves it; one that was killed left "
                f"{directory / name}.control behind: start the daemon again, or delete "
                "the file",
                file=sys.stderr,
            )
        except HostError as error:
            print(f"vhostpci-host: {name}: {told(error)}", file=sys.stderr)
            failed += 1
    return found, failed


def _ask_daemon(args: argparse.Namespace, request: dict[str, Any]) -> Any:
    """Send a request to the daemon that serves many devices."""
    path = daemon_control(run_dir(args))
    try:
        # `remove` answers when the slave VM's guest has released the windows, which
        # the daemon waits UNPLUG seconds for; give it twice that.
        return control_client.ask(
            path, request, control_client.ASK_TIMEOUT + 2 * UNPLUG
        )
    except NoDaemon:
        raise HostError(
            f"no daemon at {path}: devices are added, removed and reloaded in one that "
            "was started by `run --config FILE`; see --run-dir, or `status` for others",
            code="H010",
        ) from None


def all_names(directory: Path) -> set[str]:
    """Return the devices of all daemons of a directory that can be found.

    Raises:
        HostError: this user may not look into the directory.
    """
    names = set(control_client.devices(directory))
    # One that hangs is named by the control sockets of its devices.
    with suppress(HostError):
        names |= _listed(directory)
    return names


def _listed(run_dir: Path) -> set[str]:
    """Return the devices that the daemon of many devices lists, if there is one.

    A device that a daemon serves has a control socket (`control_client.devices`).  One
    that failed has none, and only the daemon that lists it knows of it.

    Raises:
        HostError: the daemon does not answer.
    """
    try:
        rows = control_client.ask(daemon_control(run_dir), {"command": "list"})
    except NoDaemon:
        # Daemons that serve one device each have no socket `control`.
        return set()
    return {row["name"] for row in rows}


def ask_status(run_dir: Path, name: str) -> dict[str, Any]:
    """Return the status of a device.

    Raises:
        HostError: no daemon serves the device.
    """
    request = {"command": "status", "name": name}
    answer: dict[str, Any]
    try:
        answer = control_client.ask(run_dir / f"{name}.control", request)
    except NoDaemon as error:
        # The control socket of a device that failed is closed.
        try:
            answer = control_client.ask(daemon_control(run_dir), request)
        except NoDaemon:
            # The first error names the socket of the device that the user asked for.
            raise error from None
    return answer
