# SPDX-License-Identifier: Apache-2.0
"""The carrier of the master's card, which is off while no agent serves the device.

Theory of operation.  A card of vhost-user has its carrier as long as its front-end is
connected to us.  So when rings run and no agent has served them for the grace period,
the front-end is disconnected, and the entrance is shut for as long as no agent serves
and the front-end's process lives: it would only come back at once.  Another process is
always welcome.  A QEMU that starts waits until it has negotiated, and its guest must
boot without an agent as well, so the period begins no earlier than rings run.

    on ──(no agent for the grace period)──► off ──(an agent serves)──► on
                                             └──(the process has ended)──► on

A confined master whose memory was refused is disconnected as well, by the back-end.  It
may not come back at all: each time its QEMU would serve the rings itself for a moment.

    on ──(memory refused)──► off ──(the process has ended)──► on

A front-end that would not come back keeps its carrier, although it lies: without one
the master would need a restart.
What the slave was shown of the memory of one that comes back stays shown, since a slave
VM would have to have it plugged again.
"""

import logging
from collections.abc import Callable

from vhostpci_shared import virtio
from vhostpci_shared.errors import Said
from vhostpci_shared.virtio import Feature

from ..config.device import DeviceConfig
from ..device.agent_view import MISMATCH
from ..device.device import Device
from ..device.kept import DroppedState
from ..device.peer_log import PeerLog
from ..device.status import REFUSED
from ..errors import HostError
from ..interfaces import Json, Loop, MasterPort, Timer
from .entrance import Entrance
from .reconnects import is_cloud_hypervisor, is_hidden, is_qemu, says_reconnect
from .watched_process import WatchedProcess

log = logging.getLogger(__name__)

RETURN = 10.0
"""Seconds in which a front-end comes back that may; a QEMU usually takes one."""
PUNCTUAL = 0.5
"""Seconds from one look to the next, if the daemon does not stand still."""


class MasterCarrier:
    """The carrier of one master's card.

    Args:
        config: the device's.
        device: tells of the agent and the rings, and has the windows.
        loop: tells the time, and when a process has ended.
        entrance: how front-ends come; it is shut until `begin`.
        peer_log: is told what happens to the carrier.
        save: keeps the state for a successor.
    """

    def __init__(
        self,
        config: DeviceConfig,
        device: Device,
        loop: Loop,
        entrance: Entrance,
        *,
        peer_log: PeerLog,
        save: Callable[[], None],
    ) -> None:
        self.off = False
        """Whether a front-end was disconnected, and may not come back yet."""
        self._refused = ""  # why the memory of the one that is kept out was refused
        self._problem = ""  # why it is on all the same; empty before that is known
        self._config = config
        self._device = device
        self._loop = loop
        self._entrance = entrance
        self._log = peer_log
        self._save = save
        self._served_at = self._looked_at = loop.time()
        # The front-end that is expected back, and for how long it is.
        self._process: WatchedProcess | None = None
        self._timer: Timer | None = None
        self._needs = Feature(0)  # the features that its driver has
        # The front-end that ended last after its rings had run, and when it did; and
        # the one that came back after that.
        self._left_at: tuple[int, float] = 0, 0.0
        self._returned = 0

    # What a daemon before us has left.

    def capture(self) -> DroppedState | None:
        """Return for whom the entrance is shut; None if it is not."""
        if not self.off or self._process is None:
            return None
        return DroppedState(self._process.state, int(self._needs), self._refused)

    def begin(self, dropped: DroppedState | None) -> None:
        """Open the entrance, unless a daemon before us has shut it.

        Args:
            dropped: the front-end for which that was.

        Raises:
            HostError: there cannot be a socket.
        """
        if dropped is not None:
            try:
                watched = WatchedProcess(dropped.process, self._loop, self._on_end)
            except OSError:
                pass  # it has ended, or nothing would tell us when it does
            else:
                self._process, self._needs = watched, Feature(dropped.features)
                self.off, self._refused = True, dropped.refused
                return
        self._entrance.open()

    def go_on(self, master: MasterPort | None) -> None:
        """Go on where a daemon before us has ended; it was killed at any moment.

        Args:
            master: the front-end that is connected.
        """
        if master is None and not self.off:
            self._device.forget_master()
        elif master is not None and self.off:
            master.drop(self._no_carrier)

    # What happens to front-ends.

    def came(self, pid: int) -> None:
        """Note that front-end `pid` has come."""
        self._expect_no_more()
        self._problem = ""
        last, left_at = self._left_at
        # Later it may be a user who has told the process to connect again.
        if pid == last and self._loop.time() - left_at < RETURN:
            self._returned = pid

    def left(self, pid: int) -> None:
        """Note that front-end `pid`, whose rings have run, is disconnected."""
        self._left_at = pid, self._loop.time()

    def look(self, master: MasterPort | None) -> None:
        """Take the carrier off, or put it on again, if it is time for that.

        Args:
            master: the front-end that is connected.
        """
        agent, now = self._device.agent, self._loop.time()
        # While we stand still, there may be an agent that we do not hear.
        self._served_at += max(0.0, now - self._looked_at - PUNCTUAL)
        self._looked_at = now
        if self.off:
            if self._process is None or self._may_return:
                self._put_on()
        elif agent.serves:
            self._served_at, self._problem = agent.silent_since(0.0), ""
        elif master is None or not self._device.rings_run:
            self._served_at, self._problem = now, ""
        elif self._is_over():
            self._end_grace(master)

    # Off.

    def refuse(self, pid: int, problem: str) -> None:
        """Keep out a front-end that was disconnected for good.

        Args:
            pid: its process.
            problem: why its memory was refused.
        """
        if self.off or self._why_open(pid) or self._watch(pid):
            return
        self.off, self._refused = True, problem
        self._entrance.shut()
        self._save()
        text = f"pid {pid} may not come back, and its card has no carrier until it ends"
        self._log.info(text, text)

    def _is_over(self) -> bool:
        """Whether the grace period has ended just now."""
        grace = self._config.carrier_grace
        if grace is None or self._problem:
            return False
        return self._loop.time() - self._served_at >= grace

    def _end_grace(self, master: MasterPort) -> None:
        """Take the carrier off, or say why it stays."""
        self._problem = self._why_it_stays(master.pid)
        if self._problem:
            self._log.warn_once(self._problem)
            return
        setup = self._device.setup
        self._needs = setup.features if setup is not None else Feature(0)
        self.off = True
        self._entrance.shut()
        self._save()
        master.drop(self._no_carrier)

    @property
    def why_off(self) -> str:
        """Why the carrier is off, in a few words; empty if it is on."""
        agent = self._device.agent
        if not self.off:
            return ""
        if self._refused:
            return REFUSED
        # While it is not connected, its features do not show in the agent's state.
        if agent.serves and self._lacking:
            return MISMATCH
        return agent.idle or "no agent"

    @property
    def _may_return(self) -> bool:
        """Whether the front-end that was disconnected would be served again."""
        return self._device.agent.serves and not self._lacking and not self._refused

    @property
    def _lacking(self) -> Feature:
        """What the agent's data plane lacks for the front-end that is expected back."""
        return self._device.offer.lacking(self._needs)

    @property
    def _no_carrier(self) -> str:
        if mismatch := self._device.mismatch:
            return f"{mismatch}. Its card has no carrier until then"
        agent, grace = self._device.agent, f"{self._config.carrier_grace} s"
        if agent.idle:
            return (
                f"its agent has served no ring for {grace} ({agent.entry.message}), "
                "and its card has no carrier until it does"
            )
        return (
            f"there has been no agent for {grace}, and its card has no carrier until "
            "there is one"
        )

    def _why_it_stays(self, pid: int) -> str:
        """Return why a front-end stays; empty if it may go, and is watched."""
        why = self._why_open(pid) or self._why_not(pid) or self._watch(pid)
        idle = self._device.agent.idle
        reason = f"the {idle}" if idle else "there is no agent"
        start = f"the master's card keeps its carrier although {reason}"
        return f"{start}: {why}" if why else ""

    def _watch(self, pid: int) -> str:
        """Have it told when a front-end ends; return why that cannot be."""
        self._expect_no_more()
        try:
            self._process = WatchedProcess.of(pid, self._loop, self._on_end)
        except OSError as error:
            return f"nothing would tell when pid {pid} ends ({error.strerror})"
        return ""

    def _why_open(self, pid: int) -> str:
        """Return why a front-end cannot be kept out; empty if it can."""
        if not self._entrance.can_shut:
            return "the daemon was given its socket, and cannot remove it"
        if not pid:
            return "its process is of another PID namespace"
        if is_hidden(pid):
            return f"the daemon cannot see pid {pid} in /proc (ProtectProc=, hidepid=)"
        return ""

    def _why_not(self, pid: int) -> str:
        """Return why a front-end would not come back; empty if it would."""
        setup = self._device.setup
        if setup is not None and any(ring.packed for ring in setup.rings):
            return "its rings are packed, and QEMU would not know where they stand"
        if is_cloud_hypervisor(pid):
            return "Cloud Hypervisor may not go on where its rings stand"
        if self._entrance.fetches or (pid == self._returned and is_qemu(pid)):
            return ""
        if says_reconnect(pid, self._config.vhost_user):
            return ""
        return f"nothing shows that pid {pid} would connect again (reconnect=)"

    # On again.

    def _put_on(self) -> None:
        """Open the entrance again, and expect the front-end for a while."""
        try:
            self._entrance.open()
        except HostError as error:
            text = "the master's card cannot have its carrier back"
            self._log.warn_once(Said(f"{text}: {error}", error.code))
            return
        self.off, self._needs, self._refused = False, Feature(0), ""
        self._served_at = self._loop.time()
        if self._process is not None:
            self._timer = self._loop.call_later(RETURN, self._give_up)
        self._save()
        self._log.info("the master may connect again", "carrier back")

    def _on_end(self) -> None:
        """Forget a front-end that was expected back: its process has ended."""
        self._give_up()
        if self.off:
            self._put_on()

    def _give_up(self) -> None:
        self._expect_no_more()
        self._device.forget_master()

    def _expect_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.close()
        self._timer = self._process = None

    def describe(self) -> Json:
        """Return what `status` says of it."""
        state = self.capture()
        return {
            "grace": self._config.carrier_grace,
            "off": self.off,
            "why_off": self.why_off or None,
            "waits_for": state.process.pid if state else None,
            "lacking": virtio.names(self._lacking) if self.off else [],
            "refused": self._refused or None,
            "problem": self._problem or None,
        }

    def close(self) -> None:
        """Shut the entrance, and watch nothing any more."""
        self._expect_no_more()
        self._entrance.shut()
