# SPDX-License-Identifier: Apache-2.0
"""How `run` gives its privileges up: to helpers that the agent orders.

The agent maps the memory of a master, and its threads parse rings that the master
writes.  So it runs as a user without rights, without any capability, and what needs one
is done by two processes that believe none of its orders; a third one outlives it::

   agent, as nobody ──┬── helper "bind": PCI functions, their nodes, modules   (root)
                      ├── helper "tap": TAPs                                    (root)
                      └── helper "hold": keeps VFIO devices open  (no capability)
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vhostpci_shared.log_writer import LogWriter

from ..config.file import content
from ..config.settings import Settings
from ..dataplane.vhost_user.sockets import (
    LocalSockets,
    RemoteSockets,
    Sockets,
    orders,
)
from ..errors import Unusable
from ..pci.hold import Holder, HoldOrders
from ..pci.kernel import System
from ..pci.orders import PciOrders
from ..pci.remote import RemoteSystem
from ..privileges import process, user
from ..privileges.channel import Channel, Handler
from ..privileges.helper import Helper
from ..status_socket import path_of
from ..tap.bridge import Bridge
from ..tap.orders import FORGET, MAKE_BRIDGE, TapOrders
from ..tap.remote import RemoteRequests
from ..tap.requests import LocalRequests, Requests
from .config_orders import READ, USE, ConfigOrders

log = logging.getLogger(__name__)

_BIND = {
    process.SYS_ADMIN,  # `enable` of a PCI function, and its whole configuration space
    process.SYS_MODULE,
    *(process.DAC_READ_SEARCH, process.SYS_PTRACE),  # which process has a node open
}
_TAP = {
    process.NET_ADMIN,
    process.SYS_ADMIN,  # to enter the network namespace that a TAP was moved to
}


@dataclass(frozen=True, slots=True)
class Helpers:
    """What the agent needs of its helpers."""

    requests: Requests
    system: System | None
    tap: Channel | None = None
    sockets: Sockets | None = None
    """Where back-ends come, if a data plane is vhost-user."""

    def read_config(self, file: Path) -> bytes:
        """Have the configuration file read.

        Raises:
            Unusable: it cannot be read.
        """
        if self.tap is None:
            return content(file)
        answer = self.tap.ask(READ)
        if answer.fd is None:
            raise Unusable("the helper process has sent no configuration", code="G025")
        with open(answer.fd, "rb") as copy:
            copy.seek(0)
            return copy.read()

    def use_config(self) -> None:
        """Have what was read last followed by the helper."""
        if self.tap is not None:
            self.tap.ask(USE)

    def make_bridge(self, name: str) -> None:
        """Have a bridge made, unless it exists.

        Raises:
            Unusable: it cannot be made.
        """
        if self.tap is None:
            Bridge(name).make()
        else:
            self.tap.ask(MAKE_BRIDGE, name)

    def forget_status_socket(self) -> None:
        """Have the status socket removed."""
        if self.tap is None:
            return
        try:
            self.tap.ask(FORGET)
        except (Unusable, OSError) as why:
            # The next agent removes it; the devices are given back all the same.
            log.warning("the status socket is not removed: %s", why)


@contextmanager
def helpers(
    pci: bool, config: ConfigOrders, sockets: LocalSockets | None = None
) -> Iterator[Helpers]:
    """Start the helpers; end them behind the block, when no device is held any more.

    Args:
        pci: whether the devices come from PCI.
        config: what the user has set.
        sockets: what makes the sockets of back-ends; None if there are none.
    """
    with ExitStack() as undo:
        tap = undo.enter_context(
            Helper(
                "vhostpci-tap",
                "makes TAPs",
                _TAP if sockets is None else _TAP | {process.CHOWN},
                lambda agent: {
                    **TapOrders(
                        LocalRequests(),
                        config.bridges,
                        path_of(agent),
                    ).handlers(),
                    **config.handlers(),
                    **({} if sockets is None else orders(sockets)),
                },
            )
        )
        system = _pci_helpers(undo) if pci else None
        yield Helpers(
            RemoteRequests(tap.channel),
            system,
            tap.channel,
            None if sockets is None else RemoteSockets(tap.channel),
        )


def _pci_helpers(undo: ExitStack) -> RemoteSystem:
    """Start the helpers for PCI functions."""
    bind = undo.enter_context(
        Helper("vhostpci-bind", "binds devices", _BIND, _pci_handlers)
    )
    held = HoldOrders()
    hold = undo.enter_context(
        Helper(
            *("vhostpci-hold", "holds devices", set()),
            lambda agent: held.handlers(),
            held.linger,
        )
    )
    return RemoteSystem(bind.channel, Holder(hold.channel))


def _pci_handlers(agent: int) -> dict[str, Handler]:
    system = System()
    system.ours = (agent,)
    return dict(PciOrders(system).handlers())


def local_sockets(
    config: ConfigOrders, wanted: user.User | None
) -> LocalSockets | None:
    """Return what makes the sockets of back-ends in a process that may.

    Args:
        config: what the user has set.
        wanted: who we become.
    """
    if all(plane.data_plane.has_tap for plane in config.settings.planes):
        return None
    # Not nobody's: other programs are nobody, too, and who may connect gets the
    # master's memory.
    own = wanted is not None and wanted.uid != user.NOBODY
    return LocalSockets(config, (wanted.uid, wanted.gid) if wanted and own else None)


def choose_user(settings: Settings) -> user.User | None:
    """Return the user that the agent becomes; None to stay who we are.

    Raises:
        Unusable: the user wants another one, and we are not root.
    """
    wanted = settings.user
    if os.geteuid() == 0:
        if wanted is not None:
            return wanted
        if settings.socket is not None:
            return user.owner(settings.socket)
        return user.default_user()
    if wanted is not None and wanted.uid != os.geteuid():
        raise Unusable(
            f"--user {wanted.name}: only root can become another user", code="G026"
        )
    return None


def give_up(wanted: user.User | None, *, asked: bool) -> None:
    """Become a user, and give up all capabilities.

    It is to be called before the agent has threads that serve.

    Args:
        wanted: the user; None to stay who we are.
        asked: whether the command line names the user.

    Raises:
        Unusable: we may not become the user that was asked for, or a thread would keep
            its rights.
    """
    _rest_log()
    warning = ""
    process.bound(frozenset())
    if wanted is not None and wanted.uid != os.geteuid():
        try:
            wanted.become()
        except OSError as error:
            why = f"cannot become the user {wanted.name}: {error.strerror}"
            if asked:
                raise Unusable(f"--user {wanted.name}: {why}", code="G027") from None
            warning = f"{why}; going on as root, without capabilities"
    process.limit(frozenset())
    process.hide_memory()
    if warning:
        log.warning("%s", warning)


def _rest_log() -> None:
    """End the log's thread, which may have begun: the next one has no rights.

    Raises:
        Unusable: what it has to write is not read.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogWriter) and not handler.rest():
            raise Unusable(
                "standard error is not read: read it, or send it to a file", code="G028"
            )
