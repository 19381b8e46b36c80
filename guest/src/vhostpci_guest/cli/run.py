# SPDX-License-Identifier: Apache-2.0
"""The command `run`: from its options to a running agent.

It imports the whole agent, with netlink and C, so `cli.main` imports it for `run` only.
"""

import argparse
import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from vhostpci_shared.limits import raise_descriptor_limit

from .. import status_socket
from ..agent import SIGNALS, Agent, stopped_by_signals
from ..dataplane import tx_methods
from ..dataplane.interface import Port
from ..dataplane.native import confine_error, io_uring_error
from ..dataplane.workers import Workers
from ..errors import Unusable
from ..interfaces import Source
from ..pci import bindings, search, uevents
from ..pci.kernel import System
from ..pci.uevents import Uevents
from ..pci.watch import PciWatch
from ..socket.source import SocketSource
from ..tap import bridge, naming, netlink, settings
from ..tap.tap_port import PlaneMaker, Ports
from . import data_plane_choice, separation, vhost_net_planes
from .errors import UsageError

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> None:
    """Serve devices until a signal ends the agent.

    Raises:
        UsageError: the options do not fit each other.
        Unusable: this machine lacks something, or the only device cannot be used.
    """
    choice = arguments.data_plane or data_plane_choice.AUTOMATIC
    choice.check(arguments)
    wanted, joined = _rules(arguments), _bridge(arguments)
    user = separation.choose_user(arguments)
    raise_descriptor_limit()
    # Before the helpers, too: the loop must not wait until one has imported pyroute2.
    _read_what_is_roots(arguments, tap=choice.has_tap)
    with ExitStack() as undo:
        # First: a signal that comes during the steps below must undo them as well, and
        # a second one must not interrupt the end of the helpers.
        stop, wakeup = undo.enter_context(stopped_by_signals())
        # Python removes its handlers when it ends: one more Ctrl-C would then end us
        # with another status than ours.
        undo.callback(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
        # Before all else that holds anything: they are forked from what we are now.
        helpers = undo.enter_context(
            separation.helpers(
                arguments.socket is None, joined, choice.local_sockets(user)
            )
        )
        # Before the source: an agent that can make no TAP must not take a device from
        # its driver.
        if choice.has_tap:
            helpers.requests.check_node()
        if joined is not None:
            joined.make()
        control = _control(undo, helpers)
        separation.give_up(user, asked=arguments.user is not None)
        make_port = _ports(arguments, choice, wanted, joined, helpers)
        source = _source(arguments, helpers.system)
        agent = Agent(source, make_port, control)
        undo.callback(agent.close)
        agent.run(stop, wakeup)


def _read_what_is_roots(arguments: argparse.Namespace, *, tap: bool) -> None:
    """Read and import now what our user may not be able to read later."""
    if tap:
        settings.remember_machine()
        netlink.preload()
    if arguments.socket is None:
        uevents.preload()


def _ports(
    arguments: argparse.Namespace,
    choice: data_plane_choice.Choice,
    rules: naming.Rules,
    joined: bridge.Bridge | None,
    helpers: separation.Helpers,
) -> Callable[[str], Port]:
    """Return what makes a device's port.

    Raises:
        Unusable: this machine lacks something for the data plane.
    """
    if choice.reason:
        log.info("data plane %s: %s", choice.kind, choice.reason)
    sockets = choice.socket_ports(helpers.sockets, confine=can_confine())
    return sockets or _taps(arguments, choice, rules, joined, helpers)


def _taps(
    arguments: argparse.Namespace,
    choice: data_plane_choice.Choice,
    rules: naming.Rules,
    joined: bridge.Bridge | None,
    helpers: separation.Helpers,
) -> Callable[[str], Port]:
    """Return what makes a device's port for a data plane that has a TAP.

    Raises:
        Unusable: this machine lacks something for that data plane.
    """
    if choice.in_kernel:
        make_plane = vhost_net_planes.make_planes(
            helpers.requests, helpers.system, confine=can_confine()
        )
    else:
        make_plane = _worker_planes(arguments)
    ports = Ports(
        *(rules, joined),
        make_plane=make_plane,
        kind=choice.kind,
        reason=choice.reason,
        keep=arguments.keep_tap,
        requests=helpers.requests,
    )
    return ports.make


def _worker_planes(arguments: argparse.Namespace) -> PlaneMaker:
    """Return what makes the data plane `ring` on a TAP."""
    # As the user that the workers will be: io_uring may be forbidden to it.
    io_uring = use_io_uring(arguments.tx_method)
    workers = partial(
        Workers,
        cpus=arguments.cpus,
        poll=arguments.poll_us / 1_000_000,
        io_uring=io_uring,
        confine=can_confine(),
    )
    return lambda port, device: workers(port.fds, device)


def use_io_uring(method: str) -> bool:
    """Decide whether packets go to the TAP by io_uring; log why not.

    Args:
        method: one of `tx_methods.METHODS`.

    Raises:
        Unusable: it must be io_uring, and this machine has none for us.
    """
    if method == tx_methods.WRITEV:
        return False
    error = io_uring_error()
    if not error:
        return True
    reason = tx_methods.io_uring_reason(error)
    if method == tx_methods.IO_URING:
        raise Unusable(f"--tx-method io_uring: {reason}")
    log.info("packets go to the TAP one by one (writev): %s", reason)
    return False


def can_confine() -> bool:
    """Whether the worker threads can have a filter of system calls; log why not."""
    error = confine_error()
    if error:
        log.warning(
            "the threads that move packets may make any system call, because this "
            "machine has no seccomp filters for us: %s",
            os.strerror(error),
        )
    return not error


def _rules(arguments: argparse.Namespace) -> naming.Rules:
    try:
        return naming.make_rules(
            tap=arguments.tap,
            mtu=arguments.mtu,
            macs=arguments.mac,
            addresses=arguments.address,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _bridge(arguments: argparse.Namespace) -> bridge.Bridge | None:
    if arguments.bridge is None:
        return None
    # The kernel would accept both, but gives no packet to an address of such a TAP: the
    # bridge takes each packet that arrives there.
    if arguments.address:
        raise UsageError(
            "--bridge and --address: a TAP in a bridge has no address; "
            f"give it to the bridge: ip address add CIDR dev {arguments.bridge}"
        )
    return bridge.Bridge(arguments.bridge)


def _control(
    undo: ExitStack, helpers: separation.Helpers
) -> status_socket.Control | None:
    # Packets flow without the status socket, and /run may be read-only in a container.
    try:
        socket = status_socket.Control(remove=helpers.forget_status_socket)
    except OSError as error:
        log.warning("no status socket in %s: %s", status_socket.RUN_DIR, error.strerror)
        return None
    undo.callback(socket.close)
    return socket


def _source(arguments: argparse.Namespace, system: System | None) -> Source:
    if arguments.socket is not None:
        return SocketSource(arguments.socket)
    if arguments.device is not None:
        # A wrong address is an error before anything is bound.
        search.at(arguments.device)
    return PciWatch(
        Uevents(),
        partial(bindings.bind_if, wanted=arguments.bind),
        only=arguments.device,
        system=system,
    )
