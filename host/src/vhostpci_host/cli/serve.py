# SPDX-License-Identifier: Apache-2.0
"""The commands that read a configuration and serve it: `run` and `check-config`."""

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path

from vhostpci_shared import log_options
from vhostpci_shared.barriers import NoBarriers, installed_barriers
from vhostpci_shared.log_writer import LogWriter

from .. import sockets
from ..config import options
from ..config.device import DeviceConfig
from ..config.file import ConfigFile, load, read
from ..daemon import left_behind
from ..daemon.filtered import Filtered, filter_process
from ..daemon.run import run, run_file
from ..errors import HostError
from ..filter.install import Choice
from ..keeper import notices, signals, store
from ..keeper.launch import become_keeper
from ..keeper.store import DescriptorStore
from . import capabilities
from .arguments import Usage, add_name

log = logging.getLogger(__name__)

AUTO, STANDBY, SYSTEMD, NONE = "auto", "standby", "systemd", "none"


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "SIGTERM and SIGINT end the daemon cleanly. SIGHUP has it read FILE again, as "
        "`reload` does. SIGUSR2 replaces it by a new process, which goes on, as "
        "`restart` does. SIGUSR1 is ignored."
    )
    add_name(parser, "serve one device, of this name", nargs="?")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="serve the devices of this file, and those that are added",
    )
    options.add_to(parser, *options.OPTIONS.values())
    parser.add_argument(
        "--keeper",
        choices=[AUTO, STANDBY, SYSTEMD, NONE],
        default=AUTO,
        help="who keeps all descriptors while the daemon is killed or upgraded, so "
        "that no VM notices: systemd if it offers to (FileDescriptorStoreMax=), else a "
        "small parent process; standby: that process, and the next daemon waits "
        "already; none: no process does (default: auto)",
    )
    parser.add_argument(
        "--seccomp",
        choices=[*Choice],
        default=Choice.AUTO,
        help="what becomes of a system call that this program never makes: kill ends "
        "the daemon, log has the kernel log the call, none filters nothing; auto: "
        "kill, or none if this machine has no libseccomp (default: auto)",
    )
    parser.add_argument(
        "--fd", type=int, metavar="N", help="inherited vhost-user socket"
    )
    capabilities.add_option(parser)
    parser.set_defaults(run=_run)


def add_check_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the file, as for `run --config`"
    )
    parser.set_defaults(run=_check_config)


def _run(args: argparse.Namespace) -> None:
    if args.config is not None:
        _run_file(args)
        return
    if args.name is None:
        raise Usage("run: give a device's NAME, or --config FILE", code="H019")
    for option in ("socket_path", "connect"):
        # An inherited socket is bound to its path already, or connected.
        if args.fd is not None and getattr(args, option) is not None:
            word = option.replace("_", "-")
            raise Usage(
                f"run: --fd and --{word} exclude each other: give one", code="H020"
            )
    _check_barriers()
    # The configuration is checked before logging is set up: `main` prints its errors.
    device = options.device(args.name, options.texts(args))
    _start_keeper(args)
    with _logging(args):
        inherited = None if args.fd is None else sockets.inherited(args.fd)
        _serve(
            lambda keeper, filtered: run(device, inherited, keeper, filtered),
            args,
            [device],
        )


def _run_file(args: argparse.Namespace) -> None:
    # Options beside the file would have to override it or be overridden, and a second
    # start without them would serve something else: the file alone says what is served.
    more = [f"--{name}" for name in options.texts(args)]
    more += ["NAME"] * bool(args.name) + ["--fd"] * (args.fd is not None)
    if more:
        raise Usage(f"run: with --config leave out {', '.join(more)}", code="H021")
    _check_barriers()
    file = None
    try:
        file = load(args.config)
    except HostError:
        # A successor goes on with what the file said before.
        if not store.is_successor(systemd=_systemd(args)):
            raise
    _start_keeper(args)
    with _logging(args):
        _serve(
            lambda left, filtered: run_file(
                _of_now(args.config, file, left), left, filtered
            ),
            args,
        )


def _of_now(
    path: Path, file: ConfigFile | None, keeper: DescriptorStore | None
) -> ConfigFile:
    """Return what a file says now: an heir has waited since it was read.

    The daemon before us went on with what it had read, too, if mistakes came into it.

    Args:
        path: where it is.
        file: what it said when we were started; None if it had mistakes.
        keeper: has what it said when a daemon before us read it.

    Raises:
        HostError: it has mistakes, and nothing says what it said before.
    """
    try:
        return load(path)
    except HostError as error:
        text = left_behind.file_text(keeper) if keeper else None
        before = file if text is None else read(path, text)
        if before is None:
            raise
        log.warning("%s; going on with what it said before", error)
        return before


def _start_keeper(args: argparse.Namespace) -> None:
    """Become the keeper, which starts the daemon, if there is to be one of ours."""
    _check_given(args)
    # A socket that we were given is its giver's: that is who starts us again.
    if args.keeper == NONE or args.fd is not None or store.has_keeper(_systemd(args)):
        return
    become_keeper(sys.argv[1:])


def _check_given(args: argparse.Namespace) -> None:
    """Refuse sockets of systemd's that would be listened at, and never served.

    Raises:
        HostError: there are some, and systemd is not to be the keeper.
    """
    by_systemd = args.keeper != NONE and store.has_keeper(_systemd(args))
    if (count := store.given_count()) and args.fd is None and not by_systemd:
        raise HostError(
            f"systemd gives this daemon {count} descriptors (LISTEN_FDS), which only "
            "one that has systemd as its keeper can take: FileDescriptorStoreMax= in "
            f"its unit, and --keeper {SYSTEMD}",
            code="H022",
        )


def _systemd(args: argparse.Namespace) -> bool:
    return bool(args.keeper == SYSTEMD)


def _serve(
    daemon: Callable[[DescriptorStore | None, Filtered], Coroutine[None, None, None]],
    args: argparse.Namespace,
    devices: Sequence[DeviceConfig] | None = None,
) -> None:
    """Serve until the end, which the keeper must be able to tell from a failure.

    Args:
        daemon: serves.
        args: the command's options.
        devices: all that will ever be served; None: others may be added.
    """
    kept = None
    # Until the daemon has its handlers: Python ends itself by a signal that it does not
    # handle, and the filter forbids that.
    signals.block()
    filtered = filter_process(Choice(args.seccomp), devices)
    if args.keeper != NONE and args.fd is None:
        kept = store.from_environment(systemd=_systemd(args))
    try:
        with contextlib.closing(filtered):
            asyncio.run(_until_end(daemon(kept, filtered)))
    except HostError:
        raise
    except Exception:
        if kept is None:
            raise
        log.exception("the daemon failed")
        sys.exit(notices.FAILED)


async def _until_end(daemon: Coroutine[None, None, None]) -> None:
    try:
        await daemon
    finally:
        # A terminal's Ctrl-C reaches us, and the keeper, which passes it on, and a user
        # may press it twice: one may come when the loop and its handlers are gone.
        signals.block()


def _check_barriers() -> None:
    """Check that this machine shows the slave our stores in their order.

    Raises:
        HostError: it does not.
    """
    try:
        installed_barriers()
    except NoBarriers as error:
        raise HostError(str(error), code=error.code) from None


def _check_config(args: argparse.Namespace) -> None:
    count = len(load(args.file).devices)
    print(f"{args.file}: {count} device{'s' * (count != 1)}, no errors")


@contextlib.contextmanager
def _logging(args: argparse.Namespace) -> Iterator[None]:
    """Log to stderr, without ever waiting for what reads it."""
    with contextlib.closing(LogWriter()) as writer:
        writer.setFormatter(log_options.formatter_of(args, "vhostpci-host", dated=True))
        logging.basicConfig(level=log_options.level_of(args), handlers=[writer])
        # At debug level asyncio logs its own start, which helps no user of --verbose.
        logging.getLogger("asyncio").setLevel(logging.WARNING)
        yield
