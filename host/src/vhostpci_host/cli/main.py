# SPDX-License-Identifier: Apache-2.0
"""The command `vhostpci-host`: arguments, logging, exit status.

Exit status: 0 all went well, 1 it did not (one line on stderr says why), 2 the
arguments are wrong.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__, sockets
from ..config import options
from ..config.device import (
    RUN_DIR,
    ConfigError,
    DeviceConfig,
    Mode,
    check_name,
    daemon_control,
    parse_size,
)
from ..config.file import FileError, load
from ..daemon import control_client, daemon
from ..device import status
from ..errors import HostError, NoDaemon
from ..hotplug import shmem_xml
from . import libvirt_xml, print_status, qemu_args

_Value = TypeVar("_Value")

CAPABILITIES = {"type": "net", "features": []}
"""What `--print-capabilities` says (QEMU's docs/interop/vhost-user.json)."""


class Usage(HostError):
    """Arguments that do not go together."""


class _PrintCapabilities(argparse.Action):
    """Print them and exit, whatever else is on the command line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(json.dumps(CAPABILITIES))
        parser.exit()


def _type(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Have argparse report the text of a HostError."""

    def convert(text: str) -> _Value:
        try:
            return parse(text)
        except HostError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vhostpci-host",
        description="Serve a VM's virtio-net card from inside another VM.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    _add_capabilities(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, text) in _COMMANDS.items():
        add_arguments(commands.add_parser(name, help=text, description=text))
    return parser


def _add_capabilities(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        help="print what this back-end can do, as JSON, and exit",
    )


def _add_name(parser: argparse.ArgumentParser, **more: Any) -> None:
    parser.add_argument("name", type=_type(check_name), metavar="NAME", **more)


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_name(parser, nargs="?")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="serve the devices of this file, and those that are added",
    )
    options.add_to(parser, *options.OPTIONS.values())
    parser.add_argument(
        "--fd", type=int, metavar="N", help="inherited vhost-user socket"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    _add_capabilities(parser)
    parser.set_defaults(run=_run)


def _add_check_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=_check_config)


def _add_add(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    options.add_to(parser, *options.OPTIONS.values())
    parser.set_defaults(run=_add)


def _add_remove(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    options.add_to(parser, options.RUN_DIR)
    parser.set_defaults(run=_remove)


def _add_list(parser: argparse.ArgumentParser) -> None:
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_list)


def _add_qemu_args(parser: argparse.ArgumentParser) -> None:
    _add_vm(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.set_defaults(run=_qemu_args)


def _add_xml(parser: argparse.ArgumentParser) -> None:
    _add_vm(parser)
    parser.add_argument(
        "--type",
        choices=["kvm", "qemu"],
        default="kvm",
        help="the domain's type: qemu is for a machine without KVM "
        "(default: %(default)s)",
    )
    parser.set_defaults(run=_xml)


def _add_vm(parser: argparse.ArgumentParser) -> None:
    """Add what there is to know for a VM's arguments, or its domain."""
    _add_name(parser)
    options.add_to(parser, *options.WHAT, *options.SLAVE_VM, *options.PLACES)
    parser.add_argument("--role", choices=["master", "slave"], required=True)
    parser.add_argument(
        "--windows",
        type=int,
        choices=range(1, 33),
        default=1,
        metavar="N",
        help="memory files that the master has in attach mode (default: %(default)s)",
    )
    vectors = parser.add_mutually_exclusive_group()
    vectors.add_argument(
        "--vectors", type=int, metavar="N", help="MSI-X vectors of the master's card"
    )
    vectors.add_argument(
        "--tcg-7.2",
        dest="vectors",
        action="store_const",
        const=0,
        help="no MSI-X in the master: QEMU 7.2 without KVM crashes with it",
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    _add_name(parser, nargs="?")
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_status)


def _run(args: argparse.Namespace) -> None:
    if args.config is not None:
        _run_file(args)
        return
    if args.name is None:
        raise Usage("run: give a device's NAME, or --config FILE")
    if args.fd is not None and args.socket_path is not None:
        raise Usage("run: --fd and --socket-path exclude each other: give one")
    device = options.device(args.name, options.texts(args))
    _set_up_logging(verbose=args.verbose)
    inherited = None if args.fd is None else sockets.inherited(args.fd)
    asyncio.run(daemon.run(device, inherited))


def _run_file(args: argparse.Namespace) -> None:
    more = [f"--{name}" for name in options.texts(args)]
    more += ["NAME"] * bool(args.name) + ["--fd"] * (args.fd is not None)
    if more:
        raise Usage(f"run: with --config leave out {', '.join(more)}")
    file = load(args.config)
    _set_up_logging(verbose=args.verbose)
    asyncio.run(daemon.run_file(file))


def _check_config(args: argparse.Namespace) -> None:
    count = len(load(args.file).devices)
    print(f"{args.file}: {count} device{'s' * (count != 1)}, no errors")


def _add(args: argparse.Namespace) -> None:
    given = options.texts(args)
    given.pop(options.RUN_DIR.name, None)
    _ask_daemon(args, {"command": "add", "name": args.name, "options": given})


def _remove(args: argparse.Namespace) -> None:
    _ask_daemon(args, {"command": "remove", "name": args.name})


def _list(args: argparse.Namespace) -> None:
    rows = _ask_daemon(args, {"command": "list"})
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(print_status.table(rows) if rows else "no devices")


def _ask_daemon(args: argparse.Namespace, request: dict[str, Any]) -> Any:
    """Ask the daemon that has many devices."""
    path = daemon_control(_run_dir(args))
    try:
        return control_client.ask(
            path, request, control_client.ASK_TIMEOUT + 2 * daemon.UNPLUG
        )
    except NoDaemon:
        raise HostError(
            f"no daemon at {path}: devices are added and removed in one that was "
            "started by `run --config FILE`; see --run-dir, or `status` for others"
        ) from None


def _run_dir(args: argparse.Namespace) -> Path:
    return Path(args.run_dir) if args.run_dir else RUN_DIR


def _set_up_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _qemu_args(args: argparse.Namespace) -> None:
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    if args.role == "master":
        words, hint = (
            qemu_args.master(device, ram, vectors=args.vectors),
            qemu_args.MASTER_HINT,
        )
    else:
        words, hint = (
            qemu_args.slave(device, ram, windows=args.windows),
            qemu_args.SLAVE_HINT,
        )
    if args.json:
        print(json.dumps(qemu_args.flat(words)))
        return
    print(qemu_args.text(words))
    print(hint, file=sys.stderr)


def _xml(args: argparse.Namespace) -> None:
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    if args.role == "master":
        element = libvirt_xml.master(device, ram, kind=args.type, vectors=args.vectors)
    else:
        element = libvirt_xml.slave(device, ram, kind=args.type, windows=args.windows)
    print(shmem_xml.text(element))
    print(libvirt_xml.hint(device, args.role), file=sys.stderr)


def _qemu_device(args: argparse.Namespace) -> DeviceConfig:
    """Return the device of the command line, or else the one that is served."""
    given = options.texts(args)
    if given.get("mode") == Mode.ATTACH:
        given.pop("memory", None)
    elif "memory" not in given:
        return _running_config(args)
    return options.device(args.name, given)


def _running_config(args: argparse.Namespace) -> DeviceConfig:
    """Return the configuration of the daemon that runs, if one does."""
    try:
        running = _ask_status(_run_dir(args), args.name)
    except HostError as error:
        raise HostError(f"{error}; or give --memory") from error
    if running["state"] == status.FAILED:
        raise HostError(f"{print_status.text(running)}; give --memory")
    mode = Mode(running["mode"])
    attach = mode is Mode.ATTACH
    slave = (running["plugging"] or {}).get("slave", "")
    return DeviceConfig(
        name=args.name,
        mode=mode,
        memory=0 if attach else running["memory"]["size"],
        queue_pairs=running["queue_pairs"],
        run_dir=_run_dir(args),
        memory_dir=Path() if attach else Path(running["memory"]["path"]).parent,
        socket_path=Path(running["sockets"]["vhost_user"]),
        slave_qmp=Path(slave) if slave.startswith("/") else None,
        slave_libvirt=slave if slave and not slave.startswith("/") else None,
    )


def _status(args: argparse.Namespace) -> None:
    run_dir = _run_dir(args)
    found = [_ask_status(run_dir, name) for name in _names(run_dir, args.name)]
    if args.json:
        print(json.dumps(found[0] if args.name else found, indent=2))
    else:
        print("\n".join(print_status.text(one) for one in found) or "no devices")


def _names(run_dir: Path, name: str | None) -> list[str]:
    """Return the devices that somebody serves, or that failed."""
    if name:
        return [name]
    names = {path.stem for path in run_dir.glob("*.control")}
    with contextlib.suppress(NoDaemon):
        rows = control_client.ask(daemon_control(run_dir), {"command": "list"})
        names |= {row["name"] for row in rows}
    return sorted(names)


def _ask_status(run_dir: Path, name: str) -> dict[str, Any]:
    """Ask the device's own socket; one that failed has none, but a daemon knows it."""
    request = {"command": "status", "name": name}
    answer: dict[str, Any]
    try:
        answer = control_client.ask(run_dir / f"{name}.control", request)
    except NoDaemon as error:
        try:
            answer = control_client.ask(daemon_control(run_dir), request)
        except NoDaemon:
            raise error from None
    return answer


_COMMANDS = {
    "run": (_add_run, "serve a device, or those of a file, in the foreground"),
    "check-config": (_add_check_config, "tell all that is wrong with a file"),
    "add": (_add_add, "serve one more device, in a daemon that runs"),
    "remove": (_add_remove, "serve a device no more"),
    "list": (_add_list, "list a daemon's devices"),
    "status": (_add_status, "say what a device is doing"),
    "qemu-args": (_add_qemu_args, "print QEMU's arguments"),
    "xml": (_add_xml, "print a domain for libvirt, with what it needs and no disk"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except FileError as error:
        print(error, file=sys.stderr)  # it has lines of its own, as a compiler's
        return 1
    except (Usage, ConfigError) as error:
        print(f"vhostpci-host: {error}", file=sys.stderr)
        return 2
    except HostError as error:
        print(f"vhostpci-host: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    return 0
