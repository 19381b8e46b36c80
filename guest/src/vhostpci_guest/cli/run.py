# SPDX-License-Identifier: Apache-2.0
"""The command `run`: from its options to a running agent.

It imports the whole agent, with netlink and C, so `cli.main` imports it for `run` only.
"""

import argparse
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vhostpci_shared.errors import BadValue
from vhostpci_shared.limits import raise_descriptor_limit

from .. import status_socket
from ..agent import SIGNALS, Agent, stopped_by_signals
from ..config import file as config_file
from ..config import options
from ..config.settings import PlaneSettings, Settings, contradictions, make_settings
from ..dataplane import tx_methods
from ..dataplane.native import confine_error, io_uring_error
from ..dataplane.workers import Workers
from ..errors import Unusable
from ..interfaces import Source
from ..pci import bindings, search, uevents
from ..pci.kernel import System
from ..pci.orders import TUN
from ..pci.uevents import Uevents
from ..pci.watch import PciWatch
from ..socket.source import SocketSource
from ..tap import bridge, naming, netlink
from ..tap import settings as tap_settings
from ..tap.tap_port import PlaneMaker
from . import run_options, separation, vhost_net_planes
from .config_orders import ConfigOrders
from .configuration import Configuration
from .device_ports import DevicePorts
from .errors import UsageError

log = logging.getLogger(__name__)

_RULES = ("tap", "bridge", "mtu", "mac", "address")
"""Options that `naming.make_rules` takes."""


def run(arguments: argparse.Namespace) -> None:
    """Serve devices until a signal ends the agent.

    Raises:
        UsageError: the options do not fit each other.
        Unusable: this machine lacks something, or the only device cannot be used.
    """
    file = file_of(arguments)
    settings = read_settings(arguments, file)
    user = separation.choose_user(settings)
    raise_descriptor_limit()
    # Before the helpers, too: the loop must not wait until one has imported pyroute2.
    _read_what_is_roots(settings)
    config = ConfigOrders(settings, file)
    with ExitStack() as undo:
        # First: a signal that comes during the steps below must undo them as well, and
        # a second one must not interrupt the end of the helpers.
        signals = undo.enter_context(stopped_by_signals())
        # Python removes its handlers when it ends: one more Ctrl-C would then end us
        # with another status than ours.
        undo.callback(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
        # Before all else that holds anything: they are forked from what we are now.
        helpers = undo.enter_context(
            separation.helpers(
                settings.socket is None,
                config,
                separation.local_sockets(config, user),
            )
        )
        # Before the source: an agent that can make no TAP must not take a device from
        # its driver.
        if _has_tap(settings):
            check_tun(helpers)
        for name in settings.bridges:
            bridge.Bridge(name).make()
        control = _control(undo, helpers)
        separation.give_up(user, asked=settings.user is not None)
        agent = _agent(settings, file, helpers, control)
        undo.callback(agent.close)
        agent.run(signals)


def _agent(
    settings: Settings,
    file: Path | None,
    helpers: separation.Helpers,
    control: status_socket.Control | None,
) -> Agent:
    """Make the agent, as the user that it is to be.

    Raises:
        Unusable: this machine lacks something, or has no such device.
    """
    ports = _ports(settings, helpers)
    return Agent(
        *(_source(settings, helpers.system), ports.make, control),
        configuration=Configuration(file, ports, helpers),
    )


def file_of(arguments: argparse.Namespace) -> Path | None:
    """Return the file with the settings; None if the command line has them."""
    if arguments.config is not None:
        named: Path = arguments.config
        return named
    default = options.DEFAULT_FILE
    if run_options.values(arguments) or not default.exists():
        return None
    log.info("the settings are those of %s", default)
    return default


def read_settings(arguments: argparse.Namespace, file: Path | None) -> Settings:
    """Return what the user has set, on the command line or in a file.

    Args:
        arguments: the command line.
        file: where the settings are; None: on the command line.

    Raises:
        UsageError: the options do not fit each other.
        Unusable: the file cannot be read, or has mistakes.
    """
    given = run_options.values(arguments)
    if file is None:
        return _of_command_line(given)
    # Options beside the file would have to override it or be overridden, and a reload
    # would have to know them: the file alone says what is served, and how.
    if given:
        # By the name that most people write.
        names = [options.OPTIONS[name].also or name for name in given]
        more = ", ".join(f"--{name}" for name in names)
        raise UsageError(f"run: with --config leave out {more}", code="G022")
    return config_file.load(file)


def _of_command_line(given: Mapping[str, Any]) -> Settings:
    try:
        rules = naming.make_rules(
            tap=given.get("tap"),
            bridge=given.get("bridge"),
            mtu=given.get("mtu"),
            macs=given.get("mac", ()),
            addresses=given.get("address", ()),
        )
    except BadValue as error:
        raise UsageError(str(error), code=error.code) from None
    others = {name: value for name, value in given.items() if name not in _RULES}
    settings = replace(make_settings(others), rules=rules)
    # What does nothing, as --poll-us 0, contradicts nothing.
    names = {name for name, value in given.items() if value}
    for name, why, code in contradictions(rules, settings.plane, names):
        raise UsageError(f"--{name}: {why}", code=code)
    if rules.bridge and "address" in given:
        raise UsageError(
            "--bridge and --address: a TAP in a bridge has no address; "
            f"give it to the bridge: ip address add CIDR dev {rules.bridge}",
            code="G023",
        )
    return settings


def check_tun(helpers: separation.Helpers) -> None:
    """Check that TAPs can be made; load the module if not.

    Raises:
        Unusable: they cannot.
    """
    try:
        helpers.requests.check_node()
    except Unusable as why:
        # In a container the module is the machine's affair.
        if helpers.system is None:
            raise
        said = helpers.system.modprobe(TUN)
        if said is not None:
            raise Unusable(
                f"{why}; modprobe {TUN} said: {said}", code=why.code
            ) from None
        helpers.requests.check_node()


def _has_tap(settings: Settings) -> bool:
    """Whether a device may get a TAP."""
    return any(plane.data_plane.has_tap for plane in settings.planes)


def _read_what_is_roots(settings: Settings) -> None:
    """Read and import now what our user may not be able to read later."""
    if _has_tap(settings):
        tap_settings.remember_machine()
        netlink.preload()
    if settings.socket is None:
        uevents.preload()


def _ports(settings: Settings, helpers: separation.Helpers) -> DevicePorts:
    """Return what makes the ports of devices.

    Raises:
        Unusable: this machine lacks something for a data plane.
    """
    choice = settings.plane.data_plane
    if choice.reason:
        log.info("data plane %s: %s", choice.kind, choice.reason)
    confine = can_confine()

    def make_planes(wanted: PlaneSettings) -> PlaneMaker:
        if wanted.data_plane.in_kernel:
            return vhost_net_planes.make_planes(
                helpers.requests, helpers.system, confine=confine
            )
        return _worker_planes(wanted, confine=confine)

    return DevicePorts(settings, helpers, make_planes, confine=confine)


def _worker_planes(wanted: PlaneSettings, *, confine: bool) -> PlaneMaker:
    """Return what makes the data plane `ring` on a TAP."""
    # As the user that the workers will be: io_uring may be forbidden to it.
    workers = partial(
        Workers,
        cpus=wanted.cpus,
        poll=wanted.poll_us / 1_000_000,
        io_uring=use_io_uring(wanted.tx_method),
        confine=confine,
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
        raise Unusable(f"--tx-method io_uring: {reason}", code="G024")
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


def _source(settings: Settings, system: System | None) -> Source:
    if settings.socket is not None:
        return SocketSource(settings.socket)
    if settings.pci_device is not None:
        # A wrong address is an error before anything is bound.
        search.at(settings.pci_device)
    return PciWatch(
        Uevents(),
        partial(bindings.bind_if, wanted=settings.bind),
        only=settings.pci_device,
        system=system,
    )
