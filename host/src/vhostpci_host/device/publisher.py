# SPDX-License-Identifier: Apache-2.0
"""What the agent is shown: the device, its regions, and the lease of each ring.

Theory of operation.  The leases change here first, by `start`, `stop` and `renew`;
the agent learns of it with the next `publish`, which writes the metadata if it says
something new.  A lease that changes gets a new session number (`ring_lease.py`), so
content that differs in nothing else is still published.
"""

from collections.abc import Callable, Iterable, Set

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import DeviceFlag

from ..config.device import DeviceConfig
from ..features import CONFINED_ONLY
from ..interfaces import nothing
from ..keeper.slots import StateError
from ..vhost_user.front_end_setup import FrontEndSetup
from .kept import PublisherState
from .ring_lease import Lease, RingState, Sessions


class Publisher:
    """The daemon's part of one device's metadata.

    Args:
        config: of the device.
        metadata: the region to write; it is formatted here.
        instance: a number that no other run of the daemon gives the device.
        left: what a daemon before us has left; the region is not formatted then.

    Raises:
        StateError: `left` does not fit the device.
    """

    def __init__(
        self,
        config: DeviceConfig,
        metadata: Metadata,
        instance: int,
        left: PublisherState | None = None,
    ) -> None:
        self.generation = 0
        """The generation that was published last; even."""
        self._sessions = sessions = Sessions()
        self.leases = [Lease(index, sessions) for index in range(config.rings)]
        self._config = config
        self._metadata = metadata
        self._instance = instance
        self._content: object = None
        if left is None:
            metadata.format()
        else:
            self._restore(left)

    def _restore(self, state: PublisherState) -> None:
        sessions = [lease.session for lease in state.leases]
        last = max(state.last_session, *sessions)
        if len(state.leases) != len(self.leases) or last >= 2**63:
            raise StateError(f"{len(state.leases)} leases, up to session {last}")
        if state.generation >= 2**63 or state.generation % 2:
            raise StateError(f"generation {state.generation}")
        self._sessions.last, self._instance = last, state.instance
        for lease, one in zip(self.leases, state.leases, strict=True):
            lease.restore(one)
        # The state is written before each generation: one may have come after it.
        self.generation = state.generation + 2
        self._metadata.resume(self.generation)

    def capture(self) -> PublisherState:
        """Return what a successor needs to go on with what the agent is shown."""
        return PublisherState(
            instance=self._instance,
            generation=self.generation,
            last_session=self._sessions.last,
            leases=tuple(lease.capture() for lease in self.leases),
        )

    @property
    def last_session(self) -> int:
        """The newest session number: it grows whenever a lease changes owners."""
        return self._sessions.last

    def publish(
        self,
        setup: FrontEndSetup | None,
        call_peer: int | None,
        windows: Set[int],
        *,
        slave: bool,
        takes_kicks: bool = False,
        kept: bool = False,
        before: Callable[[], None] = nothing,
    ) -> bool:
        """Write the metadata if it says something new; return whether it does.

        Args:
            setup: what the front-end has set up; None without a front-end.
            call_peer: the peer whose doorbells interrupt the master, if there is one.
            windows: numbers of the windows that the slave can open.
            slave: whether a slave is connected.
            takes_kicks: whether that peer has the kicks, too.
            kept: whether the front-end's connection outlives this daemon.
            before: called before anything is written.
        """
        content = (
            self._device(setup, slave=slave, kept=kept),
            self._regions(setup, windows),
            # An agent that reads this although no slave is connected is in a slave VM
            # of an earlier daemon.  No kick would reach it, and no call the master.
            self._rings(setup if slave else None, call_peer, takes_kicks=takes_kicks),
        )
        if content == self._content:
            return False
        before()
        self._content = content
        self.generation = self._metadata.publish(*content, self._confined())
        return True

    def reformat(self) -> None:
        """Write the whole region again with the next `publish`: it was destroyed."""
        self._metadata.format()
        self._content = None

    def _device(
        self, setup: FrontEndSetup | None, *, slave: bool, kept: bool
    ) -> md.Device:
        config = self._config
        flags = DeviceFlag.SLAVE if slave else DeviceFlag(0)
        if setup is not None:
            flags |= DeviceFlag.MASTER | (DeviceFlag.KEPT if kept else DeviceFlag(0))
        return md.Device(
            instance=self._instance,
            # CONFINED_ONLY is no matter of the agent's.
            features=int(setup.features & ~CONFINED_ONLY) if setup else 0,
            flags=flags,
            queue_pairs=config.queue_pairs,
            vectors=config.vectors,
            daemon_peer=md.DAEMON_PEER,
            mtu=setup.mtu if setup else 0,
            region_count=0,  # Metadata.publish() counts regions and rings
            ring_count=0,
            name=config.name,
        )

    def _confined(self) -> md.Confined:
        config = self._config
        if config.confined is None:
            return md.NOT_CONFINED
        return md.Confined(shared=config.shared, memory=config.memory)

    def _regions(
        self, setup: FrontEndSetup | None, windows: Set[int]
    ) -> tuple[md.Region, ...]:
        """Return the regions that lie in windows that the slave can open.

        A region whose window has no socket yet is left out: an agent that reads of it
        would wait for a window that cannot come.
        """
        if setup is None:
            return ()
        shown = windows | {md.SLAVE_ID}
        return tuple(r for r in setup.memory.metadata() if r.window in shown)

    def _rings(
        self, setup: FrontEndSetup | None, call_peer: int | None, *, takes_kicks: bool
    ) -> tuple[md.Ring, ...]:
        count = len(self.leases)
        vrings = setup.rings if setup else [None] * count
        # In the peer, the rings' kicks follow their calls.
        return tuple(
            lease.entry(vring, call_peer, count + lease.index if takes_kicks else None)
            for lease, vring in zip(self.leases, vrings, strict=True)
        )

    # The leases.

    def running(self, indexes: Iterable[int]) -> frozenset[int]:
        """Return which of these rings the agent is to run."""
        return frozenset(i for i in indexes if self.leases[i].running)

    def held(self, indexes: Iterable[int]) -> frozenset[int]:
        """Return which of these rings the agent may touch: those not yet stopped."""
        stopped = RingState.STOPPED
        return frozenset(i for i in indexes if self.leases[i].state is not stopped)

    def stopping(self) -> frozenset[int]:
        """Return the rings that the agent has been told to stop, and may still have."""
        every = range(len(self.leases))
        return self.held(every) - self.running(every)

    def disabled(self, setup: FrontEndSetup) -> frozenset[int]:
        """Return the rings that the agent is to run, and the front-end does not."""
        return self.running(
            index for index in range(len(self.leases)) if not setup.runs(index)
        )

    def start(self, setup: FrontEndSetup, now: float) -> list[int]:
        """Give the agent each stopped ring that the front-end runs; return those."""
        started = [
            index
            for index, lease in enumerate(self.leases)
            if lease.state is RingState.STOPPED and setup.runs(index)
        ]
        for index in started:
            self.leases[index].step(RingState.RUNNING)
            self.leases[index].renewed_at = now
        return started

    def stop(self, indexes: Iterable[int], *, agent_present: bool) -> None:
        """Take rings from the agent.

        With an agent they are `STOPPING` until `stopped`: it may have a packet in hand.
        """
        if not agent_present:
            self.stopped(indexes)
            return
        for index in self.running(indexes):
            self.leases[index].step(RingState.STOPPING)

    def stopped(self, indexes: Iterable[int]) -> frozenset[int]:
        """End the leases of these rings: the agent has stopped them, or is fenced.

        Return those that were not stopped before.
        """
        ended = self.held(indexes)
        for index in ended:
            self.leases[index].step(RingState.STOPPED)
        return ended

    def all_stopped(self) -> frozenset[int]:
        """End every lease; return the rings that were not stopped before."""
        return self.stopped(range(len(self.leases)))

    def renew_running(self, now: float) -> None:
        """Give every running ring to the agent in a new session."""
        for lease in self.leases:
            if lease.running:
                lease.renew(now)
