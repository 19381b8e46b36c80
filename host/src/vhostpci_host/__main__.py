# SPDX-License-Identifier: Apache-2.0
"""The command `vhostpci-host`: arguments, logging, exit status.

Exit status: 0 all went well, 1 it did not (one line on stderr says why), 2 the
arguments are wrong.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import __version__, config, daemon, endpoint, qemu, status
from .config import DeviceConfig
from .errors import HostError

_Value = TypeVar("_Value")

CAPABILITIES = {"type": "net", "features": []}
"""What `--print-capabilities` says (QEMU's docs/interop/vhost-user.json)."""


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
    _add_run(commands.add_parser("run", help="serve one device, in the foreground"))
    _add_qemu_args(commands.add_parser("qemu-args", help="print QEMU's arguments"))
    _add_status(commands.add_parser("status", help="say what a device is doing"))
    return parser


def _add_capabilities(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        help="print what this back-end can do, as JSON, and exit",
    )


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=config.RUN_DIR,
        metavar="DIR",
        help="directory of the sockets (default: %(default)s)",
    )


def _add_device(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("name", type=_type(config.check_name), metavar="NAME")
    parser.add_argument(
        "--memory",
        type=_type(config.parse_size),
        required=required,
        metavar="SIZE",
        help="the master's memory, such as 1G",
    )
    parser.add_argument(
        "--queue-pairs",
        type=_type(config.parse_queue_pairs),
        default=1,
        metavar="N",
        help="queue pairs (default: %(default)s)",
    )
    _add_run_dir(parser)
    parser.add_argument(
        "--memory-dir",
        type=Path,
        default=config.MEMORY_DIR,
        metavar="DIR",
        help="directory of the memory, on tmpfs or hugetlbfs (default: %(default)s)",
    )
    parser.add_argument(
        "--socket-path",
        type=Path,
        metavar="PATH",
        help="vhost-user socket (default: RUN-DIR/NAME.vhost-user)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_device(parser, required=True)
    parser.add_argument(
        "--fd", type=int, metavar="N", help="inherited vhost-user socket"
    )
    parser.add_argument(
        "--socket-group",
        metavar="GROUP",
        help="group that may use sockets and memory (mode 0660)",
    )
    parser.add_argument(
        "--socket-mode",
        type=_type(config.parse_mode),
        metavar="MODE",
        help="mode of sockets and memory (default: 0600, or 0660 with a group)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    _add_capabilities(parser)
    parser.set_defaults(run=_run)


def _add_qemu_args(parser: argparse.ArgumentParser) -> None:
    _add_device(parser, required=False)
    parser.add_argument("--role", choices=["master", "slave"], required=True)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
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
    parser.set_defaults(run=_qemu_args)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", type=_type(config.check_name), metavar="NAME"
    )
    _add_run_dir(parser)
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_status)


def _run(args: argparse.Namespace) -> None:
    if args.fd is not None and args.socket_path is not None:
        raise HostError("--fd and --socket-path exclude each other: give one")
    _set_up_logging(verbose=args.verbose)
    group = None if args.socket_group is None else config.group_id(args.socket_group)
    mode = args.socket_mode
    if mode is None:
        mode = 0o600 if group is None else 0o660
    inherited = None if args.fd is None else endpoint.inherited(args.fd)
    asyncio.run(daemon.run(_config(args, group=group, access=mode), inherited))


def _config(args: argparse.Namespace, **more: Any) -> DeviceConfig:
    return DeviceConfig(
        name=args.name,
        memory=args.memory,
        queue_pairs=args.queue_pairs,
        run_dir=args.run_dir.absolute(),
        memory_dir=args.memory_dir.absolute(),
        socket_path=args.socket_path and args.socket_path.absolute(),
        **more,
    )


def _set_up_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _qemu_args(args: argparse.Namespace) -> None:
    device = _config(args) if args.memory else _running_config(args)
    if args.role == "master":
        words, hint = qemu.master(device, vectors=args.vectors), qemu.MASTER_HINT
    else:
        words, hint = qemu.slave(device), qemu.SLAVE_HINT
    if args.json:
        print(json.dumps(qemu.flat(words)))
        return
    print(qemu.text(words))
    print(hint, file=sys.stderr)


def _running_config(args: argparse.Namespace) -> DeviceConfig:
    """Return the configuration of the daemon that runs, if one does."""
    control = args.run_dir.absolute() / f"{args.name}.control"
    try:
        running = endpoint.ask(control, {"command": "status", "name": args.name})
    except HostError as error:
        raise HostError(f"{error}; or give --memory") from error
    return DeviceConfig(
        name=args.name,
        memory=running["memory"]["size"],
        queue_pairs=running["queue_pairs"],
        run_dir=args.run_dir.absolute(),
        memory_dir=Path(running["memory"]["path"]).parent,
        socket_path=Path(running["sockets"]["vhost_user"]),
    )


def _status(args: argparse.Namespace) -> None:
    found = [_ask_status(path) for path in _controls(args)]
    if args.json:
        print(json.dumps(found[0] if args.name else found, indent=2))
    else:
        print("\n".join(status.text(one) for one in found) or "no devices")


def _controls(args: argparse.Namespace) -> list[Path]:
    run_dir = args.run_dir.absolute()
    if args.name:
        return [run_dir / f"{args.name}.control"]
    return sorted(run_dir.glob("*.control"))


def _ask_status(path: Path) -> dict[str, Any]:
    answer: dict[str, Any] = endpoint.ask(
        path, {"command": "status", "name": path.stem}
    )
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except HostError as error:
        print(f"vhostpci-host: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
