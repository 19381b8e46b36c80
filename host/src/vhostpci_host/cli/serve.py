# SPDX-License-Identifier: Apache-2.0
"""The commands that read a configuration and serve it: `run` and `check-config`."""

import argparse
import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from vhostpci_shared.barriers import NoBarriers, installed_barriers
from vhostpci_shared.log_writer import LogWriter

from .. import sockets
from ..config import options
from ..config.file import load
from ..daemon import daemon
from ..errors import HostError
from . import capabilities
from .arguments import Usage, add_name


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "SIGTERM and SIGINT end the daemon cleanly. SIGHUP has it read FILE again, as "
        "`reload` does. SIGUSR1 and SIGUSR2 are ignored."
    )
    add_name(parser, nargs="?")
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
    capabilities.add_option(parser)
    parser.set_defaults(run=_run)


def add_check_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=_check_config)


def _run(args: argparse.Namespace) -> None:
    if args.config is not None:
        _run_file(args)
        return
    if args.name is None:
        raise Usage("run: give a device's NAME, or --config FILE")
    for option in ("socket_path", "connect"):
        # An inherited socket is bound to its path already, or connected.
        if args.fd is not None and getattr(args, option) is not None:
            word = option.replace("_", "-")
            raise Usage(f"run: --fd and --{word} exclude each other: give one")
    _check_barriers()
    # The configuration is checked before logging is set up: `main` prints its errors.
    device = options.device(args.name, options.texts(args))
    with _logging(verbose=args.verbose):
        inherited = None if args.fd is None else sockets.inherited(args.fd)
        asyncio.run(daemon.run(device, inherited))


def _run_file(args: argparse.Namespace) -> None:
    # Options beside the file would have to override it or be overridden, and a second
    # start without them would serve something else: the file alone says what is served.
    more = [f"--{name}" for name in options.texts(args)]
    more += ["NAME"] * bool(args.name) + ["--fd"] * (args.fd is not None)
    if more:
        raise Usage(f"run: with --config leave out {', '.join(more)}")
    _check_barriers()
    file = load(args.config)
    with _logging(verbose=args.verbose):
        asyncio.run(daemon.run_file(file))


def _check_barriers() -> None:
    """Check that this machine shows the slave our stores in their order.

    Raises:
        HostError: it does not.
    """
    try:
        installed_barriers()
    except NoBarriers as error:
        raise HostError(str(error)) from None


def _check_config(args: argparse.Namespace) -> None:
    count = len(load(args.file).devices)
    print(f"{args.file}: {count} device{'s' * (count != 1)}, no errors")


@contextlib.contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    """Log to stderr, without ever waiting for what reads it."""
    with contextlib.closing(LogWriter()) as writer:
        logging.basicConfig(
            level=logging.DEBUG if verbose else logging.INFO,
            format="%(asctime)s %(levelname).1s %(message)s",
            handlers=[writer],
        )
        # At debug level asyncio logs its own start, which helps no user of --verbose.
        logging.getLogger("asyncio").setLevel(logging.WARNING)
        yield
