# SPDX-License-Identifier: Apache-2.0
"""The agent's loop, which serves all devices on the main thread.

The main thread sleeps in `Agent._wait` and nowhere else: a device's daemon waits for
the answer to a quiesce, and with it a whole master VM.  What takes long has threads of
its own: one binds PCI devices (pci/binder.py), and each queue pair has one in C
(guest/ring/loop.c).

Each round looks at the source of devices, at every device's link, and at the status
socket.  A look costs little (a link's is a few loads), so the loop does not keep track
of which descriptor woke it, and makes the list of descriptors again each round.
"""

import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

from vhostpci_shared.errors import code_of, said
from vhostpci_shared.limits import exhausted, no_descriptors, shortage
from vhostpci_shared.wire import ProtocolError

from . import __version__
from .dataplane.interface import Port
from .errors import Refused, Unusable
from .held import Held
from .interfaces import Device, Source
from .privileges import process
from .serve import questions
from .serve.heartbeat import TICK
from .serve.left_positions import LeftPositions
from .serve.link import Link
from .service_manager import ServiceManager
from .status_socket import Control

log = logging.getLogger(__name__)

SHORTAGE = 2.0
"""Seconds for which an agent without free descriptors takes nothing new."""
AWAY = 15.0
"""Seconds for which the TAP of a device that was unplugged stays.

The daemon plugs a device again when it was restarted, or when the device has no room
for the eventfds of another driver; an emulated VM may take ten seconds for it.
"""
FINISH = 0.2
"""Seconds in which the rings take what waits in the TAPs when the agent ends."""
TELL_AGAIN = 60.0
"""Seconds between two lines that say so."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELOAD = "reload"
"""The command to read the configuration again."""
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
"""They would end the agent without giving anything back."""


class Configuration(Protocol):
    """What the user has set, which may be read again."""

    def read(self) -> Set[Port]:
        """Read it again; return the ports whose data plane is to be closed.

        Raises:
            Unusable: it has mistakes; nothing has changed.
        """
        ...

    def apply(self) -> dict[str, Any]:
        """Do what was read; return what has changed."""
        ...


class Agent:
    """Serves all the devices of a source until it is told to stop.

    Args:
        source: where the devices come from; they are ours to close.
        make_port: makes the port of a device, given the device's name.
        control: the status socket, or None.
        configuration: what the user has set; None if that cannot change.
    """

    def __init__(
        self,
        source: Source,
        make_port: Callable[[str], Port],
        control: Control | None = None,
        *,
        configuration: Configuration | None = None,
    ) -> None:
        self._source = source
        self._make_port = make_port
        self._control = control
        self._configuration = configuration
        self._ports: dict[str, Port] = {}
        self._away: dict[Port, float] = {}
        """Ports whose device was unplugged, and until when their TAPs stay."""
        self._links: dict[Device, Link] = {}
        self._left = LeftPositions()
        self._tick_at = 0.0
        self._short_until: float | None = None
        self._told_at = -math.inf

    def run(self, signals: "Signals") -> None:
        """Serve until a signal says that it is time to stop.

        Raises:
            Unusable: the only device, or its TAP, cannot be used.
        """
        manager = ServiceManager.of_environment()
        while not signals.stopping:
            if signals.take_hangup():
                self._hang_up()
            self.step()
            manager.alive(time.monotonic())
            self._wait(signals.fileno())
        manager.stopping()

    def _hang_up(self) -> None:
        """Read the configuration again, because of SIGHUP."""
        try:
            self.reload()
        except Refused as why:
            for line in str(why).splitlines():
                log.error("SIGHUP: not reloaded, and nothing has changed: %s", line)

    def reload(self) -> dict[str, Any]:
        """Read the configuration again; return what has changed.

        Raises:
            Refused: it has mistakes, or there is none; nothing has changed.
        """
        if self._configuration is None:
            raise Refused(
                "this agent has no configuration that could be read again", code="G001"
            )
        try:
            ports = self._configuration.read()
        except (Unusable, OSError) as why:
            raise Refused(str(why), code=code_of(why)) from why
        for link in self._links.values():
            if link.port in ports:
                link.pause()
        report = self._configuration.apply()
        for link in self._links.values():
            link.resume()  # the obstacle of a suspended device may be gone
        return report

    def step(self) -> None:
        """Look at everything once."""
        now = time.monotonic()
        if self._short_until is not None and now >= self._short_until:
            self._short_until = None
            for link in self._links.values():
                link.resume()
        if not self._short:
            self._look_for_devices(now)
        tick = now >= self._tick_at
        if tick:
            self._tick_at = now + TICK
            self._close_ports(now)
        for link in self._links.values():
            self._serve(link, tick=tick)
        if self._control is not None and not self._short:
            self._answer(self._control, now)

    def _look_for_devices(self, now: float) -> None:
        try:
            self._source.look()
            self._match()
        except (Unusable, OSError) as error:
            short = shortage(error)
            # An agent that serves nothing yet ends, with what to do.
            if short is None or not self._links:
                raise
            self._note_shortage(short, now)

    def _answer(self, control: Control, now: float) -> None:
        """Answer who asks us something, if there is a descriptor for it."""
        try:
            control.look(self.status, self.ask)
        except OSError as error:
            if not exhausted(error):
                raise
            self._note_shortage(error, now)

    @property
    def _short(self) -> bool:
        """Whether we lacked descriptors a moment ago: nothing new is taken now."""
        return self._short_until is not None

    def _note_shortage(self, error: OSError, now: float) -> None:
        """Take nothing new for a while, and do not poll what would be taken."""
        self._short_until = now + SHORTAGE
        if now - self._told_at >= TELL_AGAIN:
            self._told_at = now
            log.warning("%s; trying again every %g s", no_descriptors(error), SHORTAGE)

    def _serve(self, link: Link, *, tick: bool) -> None:
        """Look at a link; with several devices a failure ends this link only.

        A lack of descriptors ends no agent: there may be some in a moment.
        """
        try:
            link.look()
            if tick:
                link.tick()
        except (Unusable, OSError) as why:
            if short := shortage(why):
                link.suspend(no_descriptors(short))
                self._short_until = time.monotonic() + SHORTAGE
            elif self._source.single:
                raise
            else:
                link.suspend(said(why))

    def _close_ports(self, now: float) -> None:
        """Close the ports whose device has not come back."""
        for port in [port for port, until in self._away.items() if now >= until]:
            del self._away[port]
            port.close()

    def _match(self) -> None:
        """Make a link for each new device, and close those of devices that are gone."""
        present = list(self._source.devices())
        for device in [device for device in self._links if device not in present]:
            log.info("%s: the device is gone", device.name)
            self._drop(device)
            if not self._source.single:
                port = self._ports.pop(device.name)
                port.leave()
                self._away[port] = time.monotonic() + AWAY
                for link in self._links.values():
                    link.resume()  # the TAP's name is free now
        for device in present:
            if device not in self._links:
                self._take(device)

    def _take(self, device: Device) -> None:
        if device.name not in self._ports:
            self._ports[device.name] = self._make_port(device.name)
        port = self._ports[device.name]
        try:
            self._links[device] = Link(
                *(device, port, self._source.windows(device)),
                left=self._left,
            )
        except ProtocolError as why:
            if self._source.single:
                raise Unusable(f"{device.name}: {why}", code=why.code) from None
            log.warning("%s: %s; left alone until it goes", device.name, why)
            self._source.refuse(device)
            self._source.give_back(device)

    def _drop(self, device: Device) -> None:
        try:
            self._links.pop(device).close()
        finally:
            self._source.give_back(device)

    def _wait(self, wakeup: int) -> None:
        """Sleep until a descriptor is readable, or a link or the source is due."""
        poll = select.poll()
        for fd in self._fds(wakeup):
            poll.register(fd, select.POLLIN)
        if self._control is not None and not self._short:
            for fd, events in self._control.events():
                poll.register(fd, events)
        links = list(self._links.values())
        interval = min([link.interval for link in links], default=TICK)
        until = self._tick_at
        if self._source.interval is not None:
            until = min(until, time.monotonic() + self._source.interval)
        while (left := until - time.monotonic()) > 0:
            if poll.poll(math.ceil(min(interval, left) * 1000)):
                return
            # Without interrupts this wakes 200 times a second, so it looks at one word
            # of each link, and leaves the rest of the round alone.
            if any(link.needs_look for link in links):
                return

    def _fds(self, wakeup: int) -> Iterator[int]:
        yield wakeup
        if not self._short:
            yield from self._source.fds()
        for link in self._links.values():
            yield from link.fds()

    def status(self) -> list[dict[str, Any]]:
        """Return the status of each device's link, and what this process may do."""
        may = {
            "version": __version__,
            "uid": os.geteuid(),
            "capabilities": process.names(process.permitted()),
        }
        return [{**link.status(), **may} for link in self._links.values()]

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | Held:
        """Answer what a client of the status socket asks, of us or of one device.

        Raises:
            Refused: there is no such device, or no such command, or it fails.
        """
        if request.get("command") == RELOAD:
            return self.reload()
        wanted = request.get("device")
        for link in self._links.values():
            if link.device.name == wanted:
                return questions.answer(link, request)
        raise Refused(f"no device {wanted!r}", code="G002")

    def close(self) -> None:
        """Stop all rings, tell the daemons, and give all devices back."""
        # Each step runs even if another fails.  The last entry runs first: what waits
        # in the TAPs, links, then devices that have none, then ports; the source waits
        # for the devices.
        with ExitStack() as undo:
            undo.callback(self._source.close)
            for port in (*self._ports.values(), *self._away):
                undo.callback(port.close)
            for device in self._source.devices():
                if device not in self._links:
                    undo.callback(self._source.give_back, device)
            for device in list(self._links):
                undo.callback(self._drop, device)
            undo.callback(self._finish)

    def _finish(self) -> None:
        """Send what waits in the TAPs: the kernel drops it when they are closed."""
        ports = [port for port in self._ports.values() if port.carrier]
        for port in ports:
            with suppress(Unusable):
                port.set_carrier(False)
        # A master that takes nothing costs no more than this.
        end = time.monotonic() + FINISH
        while not all(port.idle for port in ports) and time.monotonic() < end:
            time.sleep(0.001)


class Signals:
    """What signals have asked the agent for, and a descriptor that is readable then."""

    def __init__(self, read: socket.socket) -> None:
        self._read = read
        self._hung_up = False
        self.stopping = False
        """Whether the agent is to end."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when a signal has come."""
        return self._read.fileno()

    def take_hangup(self) -> bool:
        """Whether SIGHUP has come since this was asked last."""
        # First: a signal that comes after this makes the descriptor readable again.
        with suppress(BlockingIOError):
            while self._read.recv(64):
                pass
        hung_up, self._hung_up = self._hung_up, False
        return hung_up

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGHUP:
            self._hung_up = True
        else:
            self.stopping = True


@contextmanager
def stopped_by_signals() -> Iterator[Signals]:
    """Yield what signals ask for, while they do nothing else."""
    # A handler that raised could interrupt any statement.  These set a flag, so the
    # round that is under way is finished, and then everything is undone in order.
    read, write = socket.socketpair()
    with ExitStack() as undo:
        undo.enter_context(read)
        undo.enter_context(write)
        read.setblocking(False)
        write.setblocking(False)
        signals = Signals(read)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write.fileno()))
        for number in (*SIGNALS, signal.SIGHUP):
            before = signal.signal(number, signals.note)
            undo.callback(signal.signal, number, before)
        for number in _IGNORED:
            before = signal.signal(number, signal.SIG_IGN)
            undo.callback(signal.signal, number, before)
        yield signals
