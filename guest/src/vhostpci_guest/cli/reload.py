# SPDX-License-Identifier: Apache-2.0
"""The command `reload`: agents that run read their configuration files again."""

import argparse
import json
from typing import Any

from vhostpci_shared.errors import Said

from .. import status_socket
from ..errors import Unusable


def add_reload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `reload` to its parser."""
    parser.epilog = (
        "A device whose TAP changes goes on meanwhile; one whose data plane changes is "
        "started again.  A file with mistakes changes nothing.  SIGHUP does the same, "
        "and the agent's log has what comes of it."
    )
    parser.add_argument(
        "pid",
        type=int,
        nargs="?",
        metavar="PID",
        help="only the agent of this process, which `status` names; default: all",
    )
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_reload)


def _reload(arguments: argparse.Namespace) -> None:
    pids = status_socket.agents()
    if arguments.pid is not None:
        pids = [pid for pid in pids if pid == arguments.pid]
    if not pids:
        who = "no agent" if arguments.pid is None else f"no agent {arguments.pid}"
        raise Unusable(f"{who} is running", code="G020")
    answers: dict[int, Any] = {}
    problems: list[str] = []
    for pid in pids:
        try:
            answers[pid] = status_socket.request(
                pid, {"command": "reload"}, timeout=status_socket.RELOAD_TIMEOUT
            )
        except Unusable as why:
            text = f"agent {pid}: nothing has changed: {why}"
            problems.append(Said(text, why.code))
        else:
            problems += _failures(answers[pid])
    if arguments.json:
        print(json.dumps({str(pid): one for pid, one in answers.items()}, indent=2))
    else:
        for answer in answers.values():
            _print(answer)
    if problems:
        raise status_socket.missing(problems)


def _failures(answer: dict[str, Any]) -> list[str]:
    """Return what an agent could not change."""
    return [
        f"{name}: {why}"
        for name, reasons in answer["failed"].items()
        for why in reasons
    ]


def _print(answer: dict[str, Any]) -> None:
    """Print what one agent has changed."""
    lines = [f"agent: {', '.join(answer['agent'])} changed"] * bool(answer["agent"])
    lines += [
        f"{name}: {', '.join(options)} changed"
        for name, options in answer["changed"].items()
    ]
    lines += [
        f"{name}: started again for {', '.join(options)}"
        for name, options in answer["restarted"].items()
    ]
    print("\n".join(lines) or "no device that is here changes")
