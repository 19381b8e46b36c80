# SPDX-License-Identifier: Apache-2.0
"""One device: what the daemon wants of it, its rings and its TAP.

Theory of operation.  `look` compares the metadata's generation with the one that we act
by.  When the generation has changed, `_follow`:

1. reads the metadata and checks it (`plan.check`);
2. stops the rings that the daemon takes back, and notes where they stopped;
3. releases the windows that the metadata no longer names: the daemon unplugs them next;
4. answers: it writes the generation, and rings the daemon's doorbell;
5. starts rings, makes the TAP and sets the carrier.

The same steps follow when a window is plugged or unplugged: no ring runs while a window
that the metadata names is absent.

`tick` writes our heartbeat and watches the daemon's.  When the daemon has been silent
for three seconds, all rings stop until it beats again.

The metadata may hold anything.  What is impossible is logged once and reported as
FAILED, and checked again when it changes.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find
from vhostpci_shared.virtio import Feature, names
from vhostpci_shared.wire import ProtocolError

from ..dataplane.interface import DataPlane, Port, RingStatus
from ..errors import Unusable
from ..eventfds import drain
from ..interfaces import Device, Window, Windows
from .about import about
from .agent_entry import AgentEntry
from .answers import Answers
from .carrier import Carrier
from .cleared import cleared
from .daemon_connection import DaemonConnection
from .heartbeat import TICK, DaemonHeartbeat
from .left_positions import LeftPositions
from .named_windows import NamedWindows
from .plan import NOTHING, Want, check, named
from .rings import Rings
from .window_speed import Speeds

log = logging.getLogger(__name__)

FAST = 0.005
"""Seconds between two looks where no interrupt tells of a change."""
SLOW = 0.1
"""The same while no master is connected."""


PlaneState = tuple[int | None, str, Feature]
"""A data plane's offers, what it waits for, and which features lack."""
NO_PLANE: PlaneState = (None, "", Feature(0))


class Link:
    """Serves one device.

    Args:
        device: bound; it stays the caller's.
        port: where its packets go; it stays the caller's.
        windows: finds the device's further windows.
        speeds: measures its windows; by default each once it is mapped.
        left: where the device's rings stood with an earlier daemon.

    Raises:
        Unusable: the device is not the one with the metadata.
        ProtocolError: it has no metadata, or of a version that we don't know.
    """

    def __init__(
        self,
        device: Device,
        port: Port,
        windows: Windows,
        speeds: Speeds | None = None,
        left: LeftPositions | None = None,
    ) -> None:
        if device.window.id != md.SLAVE_ID:
            raise Unusable(
                f"{device.name} has IVPosition {device.window.id}: it only shows "
                f"memory for the device with IVPosition {md.SLAVE_ID}; serve that one",
                code="G098",
            )
        self.device = device
        self.port = port
        self._rings = Rings(device, port)
        self._windows = NamedWindows(windows)
        self._speeds = speeds or Speeds(device)
        self._left = left or LeftPositions()
        self._name = ""  # as the daemon says, once this agent serves the device
        self._metadata = Metadata(find(device.window.view))
        try:
            self._metadata.header()
        except ProtocolError as why:
            if isinstance(why, md.OtherVersion):
                _tell_daemon(self._metadata, device, str(why))
            self._metadata.release()
            raise
        self._answers = Answers(self._metadata, device, self._rings)
        self._carrier = Carrier(port)
        self._connection = DaemonConnection()
        self._heartbeat = DaemonHeartbeat(self._metadata.heartbeat())
        self._snapshot: md.Snapshot | None = None
        self._cleared: dict[str, Any] | None = None
        self._suspended = False
        self._suspended_why = ""
        self._plane_was: PlaneState = NO_PLANE
        """How the data plane was when we looked last."""
        self._rings.take_over(self._metadata)

    # Called by the agent's loop.

    @property
    def interval(self) -> float:
        """Seconds until the next look, if nothing happens before."""
        if not self._heartbeat.alive:
            return SLOW if self._heartbeat.seen else FAST
        if self.needs_look:
            return FAST
        if self.device.vector(md.METADATA_VECTOR) is not None:
            return TICK
        return FAST if self._rings.wanted.master else SLOW

    @property
    def needs_look(self) -> bool:
        """Whether `look` would find something to do; this question costs little."""
        return (
            self._rings.waiting_for_peer
            or self._answers.generation_changed
            or self._windows.changed
            or not self._heartbeat.alive
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
            # Before the metadata is read: a change after this signals again.
            drain(vector)
        self._rings.look()
        self._watch_daemon(tick=False)
        if not self._heartbeat.alive:
            # A ring may have been told to stop, and have stopped by now.
            if self._rings.running:
                self._rings.stop_for(NOTHING)
            self._release_lost_windows()
            return
        generation = self._metadata.generation()
        changed = generation != self._answers.generation or self._windows.changed
        # Odd: the daemon is still writing.  Once it is even we look again.
        if changed and generation % 2 == 0:
            self._follow(generation)
        elif self._rings.waiting_for_peer:
            self._start_rings()
        if self._rings.some_stopped:
            self._note_stopped_rings()
        if self._plane_state() != self._plane_was:
            self._follow_plane()

    def tick(self) -> None:
        """Beat, watch the daemon's heartbeat, and write how the rings are.

        Raises:
            Unusable: the TAP is gone.
        """
        self._watch_daemon(tick=True)
        self._watch_connection()
        self._note_stopped_rings()
        if self._rings.tick():
            self._start_rings()
        self._carrier.tick()
        self._set_carrier()
        self._look_after_tap()
        self._speeds.look({md.SLAVE_ID: self.device.window, **self._windows.used})
        self._tell_about()
        self._answers.beat()

    def _look_after_tap(self) -> None:
        """Follow what other programs do with the TAP and the bridge.

        Raises:
            Unusable: the TAP is gone.
        """
        try:
            # Here, too: while no ring runs, none stops because the TAP is gone.
            self.port.check()
            self.port.follow()
        except Unusable as why:
            self._answers.answer_failed(str(why))
            raise

    def _tell_about(self) -> None:
        """Write what people on the hypervisor may want to know of us."""
        speed = self._speeds.status(md.SLAVE_ID)
        not_counted = self._rings.summary().get("not_counted", ())
        self._metadata.write_about(
            about(
                *(self._answers.instance, self.device, self.port.status(), not_counted),
                slow=bool(speed and speed["slow"]),
            )
        )

    def suspend(self, why: str) -> None:
        """Stop serving until the metadata changes: our machine cannot go on now."""
        self._rings.stop_for(NOTHING)
        self._rings.close()
        with suppress(Unusable):  # the TAP may be what is wrong
            self._set_carrier()
        self.port.close()
        self._answers.answer_failed(why)
        self._suspended = True
        if why != self._suspended_why:
            log.warning("%s: %s; left alone for now", self.device.name, why)
            self._suspended_why = why

    def pause(self) -> None:
        """Stop the rings and close the data plane; the next look starts them again."""
        self._rings.stop_for(NOTHING)
        self._rings.close()
        self._answers.follow_again()

    def resume(self) -> None:
        """Try a suspended device again: its obstacle may be gone."""
        if self._suspended:
            self._answers.follow_again()

    # Following the daemon.

    def _watch_daemon(self, *, tick: bool) -> None:
        alive = self._heartbeat.alive
        self._heartbeat.look(self._metadata.heartbeat(), tick=tick)
        if alive == self._heartbeat.alive:
            return
        # When the daemon is back, follow its metadata even if it is the same.
        self._answers.follow_again()
        if alive:
            log.warning(
                "%s: the daemon has been silent for %g s: its rings are stopped "
                "until it is back",
                self.device.name,
                self._heartbeat.patience * TICK,
            )
            # A daemon that died cannot ask for its rings.  The master's QEMU sees the
            # connection close and uses the rings itself, so two would write to them.
            self._rings.stop_for(NOTHING)
            self._announce_stopped_rings()
        elif self._answers.served:
            log.info("%s: the daemon is back", self.device.name)

    def _watch_connection(self) -> None:
        if self._connection.tick(self._snapshot, alive=self._heartbeat.alive):
            log.warning(
                "%s: the daemon was started again, and has no connection to this "
                "device: no packet can cross until the device is unplugged and plugged "
                "again, or this VM is restarted",
                self.device.name,
            )

    def _follow(self, generation: int) -> None:
        """Do what the daemon wants, in the order of the theory of operation."""
        self._suspended = False
        snapshot, want = None, NOTHING
        windows: dict[int, Window | None] = {}
        try:
            snapshot = self._metadata.snapshot()
            if snapshot is None:
                return  # the daemon writes all the time: look again soon
            generation = snapshot.generation
            if self._expects_vectors(snapshot.device):
                return
            windows = self._windows.find(named(snapshot))
            want = self._check(snapshot, windows)
            self._begin(snapshot.device.name)
        except ProtocolError as why:
            snapshot, windows = None, {}
            self._answers.set_failed(str(why))
        self._log_absent(want)
        if not self._rings.stop_for(want):
            # A ring still runs that the daemon takes back.  No answer, so that the
            # daemon does not give the ring to the master's QEMU; the next look tries
            # again, since the generation has not been followed.
            return
        # After the stops, as a worker would read unmapped memory; before the answer, as
        # the daemon unplugs the windows then.
        self._windows.use(windows)
        self._snapshot = snapshot
        self._answers.daemon_peer = (
            snapshot.device.daemon_peer if snapshot else md.DAEMON_PEER
        )
        if snapshot is not None:
            self._say_state()
        # Before any start: the daemon waits for this answer, and with it the master's
        # QEMU, while a TAP is made or a thread starts slowly.
        self._answers.answer(generation)
        if snapshot is not None:
            self._serve(snapshot.device)
        self._set_carrier()

    def _begin(self, name: str) -> None:
        """Begin to serve the device of that name, if we do not serve it yet."""
        if not self._answers.served:
            # Before the daemon sees an agent: it decides then where rings go on.
            self._left.bring(name, self._metadata)
        self._name = name
        self._answers.served = True

    def _say_state(self) -> None:
        """Say in the next answer whether rings can run."""
        _, obstacle, lacking = self._plane_was = self._plane_state()
        if lacking:
            self._answers.set_mismatch(_mismatch(lacking, self.port.kind))
        elif obstacle:
            self._answers.set_waiting(obstacle)
        else:
            self._answers.set_ready(self._name)

    def _plane_state(self) -> PlaneState:
        return self._rings.offers, self._rings.obstacle, self._rings.lacking

    def _expects_vectors(self, device: md.Device) -> bool:
        """Whether vectors are missing that an ivshmem server has yet to send."""
        return self.device.vector_count < device.vectors and not self.device.settled

    def _check(
        self, snapshot: md.Snapshot, windows: Mapping[int, Window | None]
    ) -> Want:
        """Return what the daemon wants.

        Raises:
            Unusable: the device has too few vectors, and never served a master.
            ProtocolError: the metadata is impossible.
        """
        here = {self.device.window.id: self.device.window}
        here |= {number: found for number, found in windows.items() if found}
        try:
            return check(snapshot, here, self.device.vector_count)
        except Unusable as why:
            # A daemon must not be able to end an agent that serves well: once we were
            # ready, a wish for more vectors is the daemon's mistake.
            if self._answers.served:
                raise ProtocolError(str(why), code=why.code) from None
            self._answers.answer_failed(str(why))
            raise

    def _log_absent(self, want: Want) -> None:
        """Log which windows are awaited, if they are others than before."""
        if want.absent and want.absent != self._rings.wanted.absent:
            numbers = ", ".join(map(str, want.absent))
            log.info("%s: waits for window %s", self.device.name, numbers)

    def _release_lost_windows(self) -> None:
        """Unmap windows that were unplugged while the daemon is silent."""
        if self._windows.changed and self._rings.stop_for(NOTHING):
            self._windows.use(self._windows.find(self._windows.numbers))

    # The rings.

    def _serve(self, device: md.Device) -> None:
        """Make the TAP and the data plane if they are missing, and start rings."""
        try:
            self._rings.open(device)
            self._answers.set_tap(uso=bool(self.port.takes_uso))
            self._answers.set_plane(self.port.kind, self._rings.offers)
        except Unusable as why:
            self._answers.answer_failed(str(why))
            raise
        self._heartbeat.patience = self._rings.silent_ticks
        if self._rings.any_wanted:
            # Not before: a front-end connects, and says later what its MTU is.
            self.port.follow_mtu(device.mtu)
        self._start_rings()

    def _start_rings(self) -> None:
        """Start the rings that the daemon wants and that do not run."""
        if self._answers.generation_changed:
            # The daemon takes rings without a wait from an agent that was not READY
            # when it had published.  So we look after we have said READY: it may have
            # published before it could see that.  The next look follows.
            return
        for index, why in self._rings.start():
            if not self._answers.generation_changed:
                log.warning("%s: ring %d can't run: %s", self.device.name, index, why)
        self._set_carrier()
        self._answers.write()

    def _follow_plane(self) -> None:
        """Start rings, or say why the data plane can start none."""
        self._answers.set_plane(self.port.kind, self._rings.offers)
        self._say_state()
        self._answers.announce()
        self._start_rings()

    def _note_stopped_rings(self) -> None:
        """Log and announce the rings that have stopped by themselves.

        Raises:
            Unusable: they stopped because the TAP is gone, and so we cannot go on.
        """
        if self._answers.generation_changed:
            # A worker may see the end of a session before we read why the daemon ended
            # it.  That ring is not broken: `_follow` stops it, as the daemon wants.
            return
        try:
            stopped = self._rings.take_stopped()
        except Unusable as why:
            self._answers.answer_failed(str(why))
            raise
        for index, status in stopped:
            self._log_stopped(index, status)
        if stopped:
            self._announce_stopped_rings()

    def _log_stopped(self, index: int, status: RingStatus) -> None:
        log.warning(
            "%s: ring %d is %s at %d: %s",
            self.device.name,
            index,
            status.state.name.lower(),
            status.index,
            status.reason,
        )

    def _announce_stopped_rings(self) -> None:
        """Tell the slave's kernel, by the carrier, and the daemon."""
        self._set_carrier()
        self._answers.announce()

    def _set_carrier(self) -> None:
        wanted = self._rings.wanted
        self._carrier.follow(
            running=self._rings.running,
            blocked=self._rings.blocked,
            master=wanted.master,
            absent=bool(wanted.absent),
        )

    def window(self, number: int) -> Window | None:
        """Return a window of this device that is mapped now."""
        if number == self.device.window.id:
            return self.device.window
        return self._windows.used.get(number)

    @property
    def plane(self) -> DataPlane | None:
        """What moves the packets; None before a ring was to run."""
        return self._rings.plane

    # Status.

    def clear(self) -> None:
        """Have `vhostpci-guest stats` count from now on."""
        self._cleared = cleared(self.status())

    def status(self) -> dict[str, Any]:
        """Return the device's state as `vhostpci-guest status -j` prints it."""
        snapshot = self._snapshot
        return {
            "device": self.device.name,
            "name": snapshot.device.name if snapshot else None,
            "binding": self.device.binding,
            "interrupts": self.device.vector(md.METADATA_VECTOR) is not None,
            "vectors": self.device.vector_count,
            "state": self._answers.state.name.lower(),
            "message": self._answers.message,
            "daemon": self._daemon_state(),
            "daemon_silent": self._heartbeat.silent,
            "master": self._rings.wanted.master,
            "confined": _confined(snapshot),
            "window_size": self.device.window.size,
            "speed": self._speeds.status(md.SLAVE_ID),
            "windows": [
                {
                    "id": number,
                    "device": window.device if window else None,
                    "size": window.size if window else None,
                    "speed": self._speeds.status(number),
                }
                for number, window in self._windows.used.items()
            ],
            "generation": self._answers.generation,
            "data_plane": self.port.kind,
            **self.port.status(),
            **self._rings.summary(),
            "rings": self._rings.status(),
            "cleared": self._cleared,
        }

    def _daemon_state(self) -> str:
        if not self._heartbeat.alive:
            return "silent"
        return "not connected to this device" if self._connection.lost else "alive"

    def close(self) -> None:
        """Stop all rings, and tell the daemon that this agent ends.

        The caller gives the device back next, whether or not this fails.
        """
        # So each step runs even if another fails.  The last entry runs first.
        with ExitStack() as undo:
            undo.callback(self._metadata.release)
            # A worker may use the windows, so they go after the data plane.
            undo.callback(self._windows.use, {})
            undo.callback(self._rings.close)
            undo.callback(self._answers.leave)
            undo.callback(self._keep_positions)
            undo.callback(self._rings.finish)

    def _keep_positions(self) -> None:
        """Remember where the rings stand, and set the carrier as they do not run."""
        if self._name:
            self._left.keep(self._name, self._rings.positions())
        with suppress(Unusable):  # the TAP may be why we end
            self._set_carrier()


def _confined(snapshot: md.Snapshot | None) -> dict[str, Any] | None:
    """Return how much of the master's memory we are said to have; None: all of it."""
    found = snapshot.confined if snapshot else md.NOT_CONFINED
    if not found.shared:
        return None
    return {"shared": found.shared, "memory": found.memory or None}


def _tell_daemon(metadata: Metadata, device: Device, why: str) -> None:
    """Let a daemon of another version show why no agent serves the device.

    The beginning of the agent's entry is the same in every version.
    """
    entry = AgentEntry(metadata, device)
    entry.set_failed(why)
    entry.write()
    device.ring(md.DAEMON_PEER, md.METADATA_VECTOR)


def _mismatch(lacking: Feature, kind: str) -> str:
    """Say which features lack, and what to do; the daemon keeps 183 bytes of it."""
    return (
        f"--data-plane {kind} lacks what the master's driver uses: give the device "
        "features= and start the master VM again, or take another data plane; lacking: "
        f"{', '.join(names(lacking))}"
    )
