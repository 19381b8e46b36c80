# SPDX-License-Identifier: Apache-2.0
"""One device of ours: what the daemon says about it, its rings and its TAP.

Theory of operation.  `look` looks at the metadata's generation.  When it has changed:

1. read and check what the daemon wants (`plan.check`);
2. stop the rings that may not go on, and write down where they stopped;
3. let go of the windows that are not named any more: the daemon unplugs them next;
4. write the generation, and ring the daemon's doorbell: it may be waiting, and the
   whole master VM with it;
5. only then start rings, make the TAP, move the carrier.

A window that comes late, or goes while it is in use, is followed the same way: no ring
runs while one that is named is absent.

`tick` beats our heart, and watches the daemon's.  A daemon that says nothing for
three seconds may be dead, and then the master's QEMU has taken its rings back without
a word: they are stopped until it beats again.  For the same reason nothing runs
before we have seen it beat once.

What the metadata says may be anything.  It is logged once, reported as FAILED, and
looked at again when it changes.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find
from vhostpci_shared.metadata import AgentState
from vhostpci_shared.wire import ProtocolError

from ..dataplane.interface import PlaneMaker, RingStatus
from ..errors import Unusable
from ..eventfds import drain
from ..interfaces import Device, Window, Windows
from ..tap.tap_port import Port
from .named_windows import Named
from .plan import NOTHING, Want, check, named
from .rings import Rings
from .window_speed import Speeds

log = logging.getLogger(__name__)

TICK = 0.2
"""Seconds between two beats of our heart; the metadata asks for 0.25."""
FAST = 0.005
"""Seconds between two looks where no interrupt tells of a change."""
SLOW = 0.1
"""The same while no master is there."""
_SILENT_TICKS = 15
"""Looks at a heartbeat that stands still before the daemon is given up: 3 s.

They are counted, not timed: a slave VM that was paused finds much time gone.
"""
_IDLE_TICKS = 2
"""Ticks without a ring that runs, until the cable is pulled: 0.2 to 0.4 s."""


class Pulse:
    """Whether the daemon's heart beats."""

    def __init__(self, beat: int) -> None:
        self.known = False
        """Whether it has ever beaten while we looked: no ring runs before."""
        self._beat = beat
        self._silent = _SILENT_TICKS

    @property
    def alive(self) -> bool:
        """Whether it has beaten lately."""
        return self._silent < _SILENT_TICKS

    def look(self, beat: int, *, tick: bool) -> None:
        """Take a look; only those of a `tick` count against it."""
        if beat != self._beat:
            self._beat, self._silent, self.known = beat, 0, True
        elif tick:
            self._silent = min(self._silent + 1, _SILENT_TICKS)


class Link:
    """Serves one device.

    Args:
        device: bound; it stays the caller's.
        port: where its packets go; it stays the caller's.
        make_plane: makes what moves them.
        windows: finds the device's further windows.
        speeds: measures its windows; default: as they are.

    Raises:
        Unusable: the device is not the one with the metadata.
        ProtocolError: it has no metadata, or of a version that we don't know.
    """

    def __init__(
        self,
        device: Device,
        port: Port,
        make_plane: PlaneMaker,
        windows: Windows,
        speeds: Speeds | None = None,
    ) -> None:
        if device.window.id != md.SLAVE_ID:
            raise Unusable(
                f"{device.name} has IVPosition {device.window.id}: it shows memory to "
                f"a device with IVPosition {md.SLAVE_ID}, which is the one to serve"
            )
        self.device = device
        self.port = port
        self._rings = Rings(device, port, make_plane)
        self._windows = Named(windows)
        self._speeds = speeds or Speeds(device)
        self._metadata = Metadata(find(device.window.view))
        try:
            self._metadata.header()
        except ProtocolError:
            self._metadata.release()
            raise
        self._agent = md.Agent(
            instance=int.from_bytes(os.urandom(8)) | 1,
            vectors=device.vector_count,
            binding=device.binding,
        )
        self._pulse = Pulse(self._metadata.heartbeat())
        self._snapshot: md.Snapshot | None = None
        self._acted: int | None = None  # the generation that we act by
        self._served = False
        self._left = False  # alone
        self._told = ""  # why
        self._idle_ticks = 0
        self._rings.inherit(self._metadata)

    # What the loop asks.

    @property
    def interval(self) -> float:
        """Seconds until the next look, if nothing happens before."""
        if not self._pulse.alive:
            return SLOW if self._pulse.known else FAST
        if self.has_news:
            return FAST
        if self.device.vector(md.METADATA_VECTOR) is not None:
            return TICK
        return FAST if self._rings.wanted.master else SLOW

    @property
    def has_news(self) -> bool:
        """Whether a full look is worth its while; this one costs little."""
        return (
            self._rings.waiting
            or self._outdated
            or self._windows.moved
            or not self._pulse.alive
        )

    def fds(self) -> Iterator[int]:
        """Return the descriptors at which something happens."""
        vector = self.device.vector(md.METADATA_VECTOR)
        if vector is not None:
            yield vector
        yield from self._rings.fds()

    def look(self) -> None:
        """See what has happened, and act on it.

        Raises:
            Unusable: the device cannot be served at all.
        """
        vector = self.device.vector(md.METADATA_VECTOR)
        if vector is not None:
            drain(vector)
        self._rings.look()
        self._watch_daemon(tick=False)
        if not self._pulse.alive:
            self._let_windows_go()
            return
        generation = self._metadata.generation()
        news = generation != self._acted or self._windows.moved
        if news and generation % 2 == 0:
            self._follow(generation)
        elif self._rings.waiting:
            self._start_rings()
        if self._rings.fell:
            self._watch_rings()

    def tick(self) -> None:
        """Beat our heart, watch the daemon's, and tell how the rings are.

        Raises:
            Unusable: the TAP is gone.
        """
        self._watch_daemon(tick=True)
        self._watch_rings()
        self._idle_ticks += 1
        self._set_carrier()
        self.port.follow_bridge()
        self._speeds.look({md.SLAVE_ID: self.device.window, **self._windows.seen})
        self._agent = replace(self._agent, heartbeat=self._agent.heartbeat + 1)
        self._report()

    def leave_alone(self, why: str) -> None:
        """Run nothing until the daemon says something new: our machine can't."""
        self._rings.stop_for(NOTHING)
        self._rings.close()
        with suppress(Unusable):  # the TAP may be what is wrong
            self._set_carrier()
        self.port.close()
        self._give_up(why)
        self._left = True
        if why != self._told:
            log.warning("%s: %s; left alone for now", self.device.name, why)
            self._told = why

    def try_again(self) -> None:
        """Look anew at a device that was left alone: its hindrance may be gone."""
        if self._left:
            self._acted = None

    # Following the daemon.

    def _watch_daemon(self, *, tick: bool) -> None:
        alive = self._pulse.alive
        self._pulse.look(self._metadata.heartbeat(), tick=tick)
        if alive == self._pulse.alive:
            return
        self._acted = None  # look at everything anew, once it lives
        if alive:
            log.warning(
                "%s: the daemon has been silent for %g s: its rings are stopped "
                "until it is back",
                self.device.name,
                _SILENT_TICKS * TICK,
            )
            self._rings.stop_for(NOTHING)
            self._tell_rings()
        elif self._served:
            log.info("%s: the daemon is back", self.device.name)

    def _follow(self, generation: int) -> None:
        """Act by a generation of the daemon's."""
        self._left = False
        snapshot, want = None, NOTHING
        windows: dict[int, Window | None] = {}
        try:
            snapshot = self._metadata.snapshot()
            if snapshot is None:
                return  # it changes again
            generation = snapshot.generation
            if self._vectors_to_come(snapshot.device):
                return
            windows = self._windows.find(named(snapshot))
            want = self._check(snapshot, windows)
            self._well(snapshot.device.name)
        except ProtocolError as why:
            snapshot, windows = None, {}
            self._failed(str(why))
        self._tell_absent(want)
        if self._rings.stop_for(want):
            self._windows.keep(windows)
            self._snapshot = snapshot
            self._answer(generation)
            if snapshot is not None:
                self._go_on(snapshot.device)
            self._set_carrier()

    def _vectors_to_come(self, device: md.Device) -> bool:
        return self.device.vector_count < device.vectors and not self.device.settled

    def _check(
        self, snapshot: md.Snapshot, windows: Mapping[int, Window | None]
    ) -> Want:
        """Return what to do; a device that is too small ends us, but only at first."""
        here = {self.device.window.id: self.device.window}
        here |= {number: found for number, found in windows.items() if found}
        try:
            return check(snapshot, here, self.device.vector_count)
        except Unusable as why:
            if self._served:
                raise ProtocolError(str(why)) from None
            self._give_up(str(why))
            raise

    def _well(self, name: str) -> None:
        """Say that we serve the device, when that is news."""
        if self._agent.state is not AgentState.READY:
            log.info("%s: serving %r", self.device.name, name)
        self._agent = replace(self._agent, state=AgentState.READY, message="")
        self._served = True

    def _failed(self, why: str) -> None:
        """Say what is wrong with the metadata, once."""
        if why != self._agent.message:
            log.warning("%s: %s", self.device.name, why)
        self._agent = replace(self._agent, state=AgentState.FAILED, message=why)

    def _give_up(self, why: str) -> None:
        """Tell the daemon why nobody will serve this device."""
        self._agent = replace(self._agent, state=AgentState.FAILED, message=why)
        self._answer(self._metadata.generation())

    def _tell_absent(self, want: Want) -> None:
        """Say which windows we wait for, when that is news."""
        if want.absent and want.absent != self._rings.wanted.absent:
            numbers = ", ".join(map(str, want.absent))
            log.info("%s: waits for window %s", self.device.name, numbers)

    def _let_windows_go(self) -> None:
        """Unmap windows that are gone, while no ring runs anyway."""
        if self._windows.moved and self._rings.stop_for(NOTHING):
            self._windows.keep(self._windows.find(self._windows.numbers))

    def _answer(self, generation: int) -> None:
        """Tell the daemon by which generation we act."""
        self._acted = generation
        self._agent = replace(self._agent, generation=generation)
        self._report()
        self._ring_daemon()

    def _ring_daemon(self) -> None:
        peer = self._snapshot.device.daemon_peer if self._snapshot else md.DAEMON_PEER
        self.device.ring(peer, md.METADATA_VECTOR)

    # The rings.

    def _go_on(self, device: md.Device) -> None:
        """Serve the device as it is wanted now."""
        try:
            self._rings.open(device)
        except Unusable as why:
            self._give_up(str(why))
            raise
        self.port.follow_mtu(device.mtu)
        self._start_rings()

    def _start_rings(self) -> None:
        """Start what is wanted, and does not run."""
        for index, why in self._rings.start():
            if not self._outdated:
                log.warning("%s: ring %d can't run: %s", self.device.name, index, why)
        self._set_carrier()
        self._report()

    @property
    def _outdated(self) -> bool:
        """Whether the daemon has said something that we have not read yet.

        A worker may see that a session is over before we read why.  That is no
        news: `_follow` will stop those rings, as the daemon wants it.
        """
        return self._acted != self._metadata.generation()

    def _watch_rings(self) -> None:
        """Take note of rings that stopped by themselves.

        Raises:
            Unusable: they did because the TAP is gone, and so must we.
        """
        if self._outdated:
            return
        try:
            fallen = self._rings.fallen()
        except Unusable as why:
            self._give_up(str(why))
            raise
        for index, status in fallen:
            self._tell_fallen(index, status)
        if fallen:
            self._tell_rings()

    def _tell_fallen(self, index: int, status: RingStatus) -> None:
        log.warning(
            "%s: ring %d is %s at %d: %s",
            self.device.name,
            index,
            status.state.name.lower(),
            status.index,
            status.reason,
        )

    def _tell_rings(self) -> None:
        """Tell both sides of rings that run no more."""
        self._set_carrier()
        self._report()
        self._ring_daemon()

    def _set_carrier(self) -> None:
        """Plug the cable in; pull it once it is clear that no ring goes on.

        A master stops its rings for some milliseconds when its memory changes.  A
        cable that is out would lose what waits in the TAP, and make a bridge forget.
        """
        if self._rings.running:
            self._idle_ticks = 0
            self.port.set_carrier(True)
        elif not self._rings.wanted.master or self._idle_ticks >= _IDLE_TICKS:
            self.port.set_carrier(False)

    # Telling.

    def _report(self) -> None:
        """Write how we are into the metadata."""
        vectors = self.device.vector_count  # a server's come one by one
        self._agent = replace(self._agent, vectors=vectors)
        self._rings.report(self._metadata)
        self._metadata.write_agent(self._agent)

    def status(self) -> dict[str, Any]:
        """Return how we are, as `vhostpci-guest status -j` prints it."""
        snapshot = self._snapshot
        return {
            "device": self.device.name,
            "name": snapshot.device.name if snapshot else None,
            "binding": self.device.binding,
            "interrupts": self.device.vector(md.METADATA_VECTOR) is not None,
            "vectors": self.device.vector_count,
            "state": self._agent.state.name.lower(),
            "message": self._agent.message,
            "daemon": "alive" if self._pulse.alive else "silent",
            "master": self._rings.wanted.master,
            "speed": self._speeds.status(md.SLAVE_ID),
            "windows": [
                {
                    "id": number,
                    "device": window.device if window else None,
                    "size": window.size if window else None,
                    "speed": self._speeds.status(number),
                }
                for number, window in self._windows.seen.items()
            ],
            "generation": self._acted,
            "tap": self.port.name,
            "bridge": self.port.bridge,
            "carrier": self.port.carrier,
            "rings": self._rings.status(),
        }

    def close(self) -> None:
        """Stop all, and say goodbye to the daemon; what failed stays said."""
        self._rings.stop_for(NOTHING)
        with suppress(Unusable):  # the TAP may be what ended us
            self._set_carrier()
        if self._agent.state is not AgentState.FAILED:
            self._agent = replace(self._agent, state=AgentState.NONE)
        self._report()
        self._ring_daemon()
        self._rings.close()
        self._windows.keep({})
        self._metadata.release()
