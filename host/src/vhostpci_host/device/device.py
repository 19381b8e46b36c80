# SPDX-License-Identifier: Apache-2.0
"""One master and its slave: what backend, memory and peers add up to.

Theory of operation.  The front-end describes its rings in many small messages.  Once
they have been quiet for some milliseconds the device *settles*: it introduces the
call eventfds as a peer, publishes the metadata, and interrupts the slave.  What stops
a ring is published at once, and the front-end gets its answer when the agent has
said that it let go (`_stop`, `_poll_agent`), or when it has been too long about it.

`lease.py` has the states of a ring.  Nothing here waits: the loop calls back.
"""

import logging
import random
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, DeviceFlag
from vhostpci_shared.wire import ProtocolError

from ..config.device import DeviceConfig
from ..errors import HostError
from ..fds import Notifier
from ..interfaces import Loop, MasterPort, Plugger, Timer
from ..ivshmem.doorbells import VectorSet
from ..ivshmem.peers import PeersExhausted
from ..ivshmem.slave import Slave, SlavePort
from ..memory.regions import Store
from ..vhost_user.backend import Answer, Backend, Quiesce
from ..vhost_user.message import Message
from .agent_view import AgentView
from .debounce import Settling
from .ring_lease import Lease, RingState, Sessions
from .windows import Shown, WindowHost

log = logging.getLogger(__name__)

QUIESCE = 1.0
"""Seconds to wait for the agent while the master's QEMU stands still."""
POLL = 0.002
TICK = 0.250
QUIET = 60.0
"""Seconds between two lines about a file that is cut again and again."""
RENEW_PAUSE = 1.0
"""Seconds until a ring that the agent left as fenced is given to it again."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """We wait for the agent to reach `generation`, but not beyond `deadline`."""

    generation: int
    deadline: float
    rings: frozenset[int]


class Device:
    """One device, from the daemon's start to its end.

    Args:
        config: what it is to be.
        store: where its memory is; ours to close.
        loop: what calls back.
        host: who has sockets for its windows.
        plugger: who plugs them into the slave VM, if anybody.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: Store,
        loop: Loop,
        host: WindowHost,
        plugger: Plugger | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self.plugger = plugger
        self.windows = Shown(config, store, host, plugger, loop)
        self.instance = random.getrandbits(63) | 1
        self.backend: Backend | None = None
        self.master: MasterPort | None = None
        self.slave: Slave | None = None
        self.generation = 0
        self.agent = AgentView(store.metadata, config.name, config.vectors)
        self._sessions = sessions = Sessions()
        self.leases = [Lease(index, sessions) for index in range(config.rings)]
        self._loop = loop
        self._doorbell = Notifier.new()
        self._settling = Settling(loop, self._settle)
        self._replacing = False
        self._wait: _Wait | None = None
        self._wait_timer: Timer | None = None
        self._published: object = None
        self._ticks = 0
        self._quiet_until = 0.0
        store.metadata.format()
        self._publish()
        loop.add_reader(self._doorbell.fileno(), self._on_doorbell)
        self._tick_timer = loop.call_later(TICK, self._tick)

    def close(self) -> None:
        """Tell the slave that there is no master, and let go of everything.

        Whatever fails of it, the rest is done: another may want the same files.
        """
        with ExitStack() as stack:
            stack.callback(self.store.close)
            stack.callback(self._doorbell.close)
            stack.callback(self._loop.remove_reader, self._doorbell.fileno())
            stack.callback(self.slave_gone)
            stack.callback(self.master_gone)
            stack.callback(self._tick_timer.cancel)

    # The master.

    def master_connected(self, port: MasterPort) -> None:
        """A front-end is there; nothing is known of it yet."""
        assert self.master is None, "one master at a time"
        log.info("%s: front-end connected (pid %d)", self.config.name, port.pid)
        self.master = port
        windows = self.store.windows(port.pid, self._for_vm)
        self.backend = Backend(self.config.queue_pairs, windows)
        self._publish()

    def master_gone(self) -> None:
        """Its QEMU has the rings back by now: take them from the agent at once."""
        if self.master is None or self.backend is None:
            return
        log.info("%s: front-end disconnected", self.config.name)
        self._end_wait()
        self._settling.cancel()
        self._end(
            i for i, ring in enumerate(self.leases) if ring.state != RingState.STOPPED
        )
        if self.slave is not None:
            self.slave.withdraw(self.generation)
        self.backend.close()
        self.backend = self.master = None
        self.windows.want(frozenset(), device=False)
        self._publish()
        self._retire_windows()

    def _for_vm(self) -> bool:
        """Whether the slave is a VM, or will be one."""
        slave = self.slave
        return self.config.plugged or (slave is not None and not slave.port.is_process)

    def receive(self, message: Message) -> None:
        """Take one message of the front-end; it has no more until we resume it."""
        assert self.backend is not None, "a message from nobody"
        try:
            self._go_on(self.backend.receive(message))
        except ProtocolError as error:
            self._drop_master(error)

    def _go_on(self, outcome: Answer | Quiesce) -> None:
        """Do what the back-end says until there is an answer, or a wait."""
        assert self.backend is not None, "an answer for nobody"
        assert self.master is not None, "an answer for nobody"
        while isinstance(outcome, Quiesce):
            if self._stop(outcome.rings):
                self.master.pause()
                return
            outcome = self.backend.resume()
        self.store.keep(self.backend.memory.windows | self.windows.numbers)
        if outcome.refusal:
            log.warning("%s: refused %s", self.config.name, outcome.refusal)
        self._settling.touch()
        if outcome.reply:
            self.master.send(outcome.reply)

    def _drop_master(self, error: ProtocolError | HostError) -> None:
        assert self.master is not None, "nobody to drop"
        self.master.drop(str(error))

    # Stopping rings.

    def _stop(self, indexes: frozenset[int]) -> bool:
        """Take rings from the agent; say whether it has yet to let go of them."""
        running = frozenset(i for i in indexes if self.leases[i].running)
        if not running:
            return False
        now = self._loop.time()
        self._sample_agent()
        present = self.agent.present
        for index in running:
            state = RingState.STOPPING if present else RingState.STOPPED
            self.leases[index].step(state)
        self._publish()
        if present:
            self._wait = _Wait(self.generation, now + QUIESCE, running)
            self._wait_timer = self._loop.call_later(POLL, self._poll_agent)
        else:
            log.info("%s: stopped rings %s", self.config.name, sorted(running))
        return present

    def _poll_agent(self) -> None:
        """The agent may have no interrupt to tell us with: look now and then."""
        self._wait_timer = self._loop.call_later(POLL, self._poll_agent)
        self._look_at_agent()

    def _check_wait(self) -> None:
        """See whether the agent has let go, or had its time."""
        wait = self._wait
        if wait is None:
            return
        if self.agent.entry.generation >= wait.generation:
            self._stopped(wait, answered=True)
        elif self._loop.time() >= wait.deadline:
            log.warning(
                "%s: the agent did not stop within %g s; going on without it",
                self.config.name,
                QUIESCE,
            )
            self.agent.late_at = wait.generation
            self._stopped(wait, answered=False)

    def _stopped(self, wait: _Wait, *, answered: bool) -> None:
        """The agent let go, or is taken to have: the front-end gets its answer."""
        assert self.backend is not None, "a wait for nobody"
        assert self.master is not None, "a wait for nobody"
        master = self.master
        self._end_wait()
        self._end(wait.rings)
        if not answered:
            self._publish()  # it is fenced before the front-end has its answer
        try:
            self._go_on(self.backend.resume())
        except ProtocolError as error:
            self._drop_master(error)
        if self._wait is None:
            master.resume()

    def _end_wait(self) -> None:
        self._wait = None
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None

    def _end(self, indexes: Iterable[int]) -> None:
        """These rings are nobody's any more."""
        indexes = sorted(indexes)
        for index in indexes:
            self.leases[index].step(RingState.STOPPED)
        if indexes:
            log.info("%s: stopped rings %s", self.config.name, indexes)

    # Settling.

    def _settle(self) -> None:
        """Give the agent what the front-end has set up."""
        self._settling.cancel()
        backend = self.backend
        if backend is None or backend.waiting:
            return
        if not self._show_windows(backend):
            return
        try:
            introduced = self._introduce_calls(backend)
        except PeersExhausted as error:
            self._replace_slave(error)
            return
        if self.slave is not None and self.slave.behind():
            self._settling.again(POLL)
            return
        started = self._start(backend)
        try:
            self._relay_kicks(backend)
        except ProtocolError as error:
            self._drop_master(error)
            return
        self._publish()
        if self.slave is not None and (introduced or started):
            self.slave.signal_calls()

    def _show_windows(self, backend: Backend) -> bool:
        """Have a socket for each window before the agent is told of it."""
        device = any(backend.runs(index) for index in range(len(self.leases)))
        try:
            self.windows.want(
                backend.memory.windows, device=device or self.windows.device
            )
        except HostError as error:
            self._drop_master(error)
            return False
        return True

    def _relay_kicks(self, backend: Backend) -> None:
        vectors = self.slave.vectors if self.slave else None
        for ring, wish in zip(self.leases, backend.rings, strict=True):
            ring.relay_kicks(self._loop, wish.kick, vectors)

    def _introduce_calls(self, backend: Backend) -> bool:
        if self.slave is None:
            return False
        calls = [
            ring.call if backend.runs(index) else None
            for index, ring in enumerate(backend.rings)
        ]
        return self.slave.introduce(calls, self.generation)

    def _replace_slave(self, error: PeersExhausted) -> None:
        """The slave's device is used up: the rings wait for a new one."""
        assert self.slave is not None, "the peers of nobody"
        if self.plugger is None:
            why = f"{error}: unplug the slave's device and plug it again"
            self.slave.port.drop(why)
        elif not self._replacing:
            log.info(
                "%s: the slave's device is plugged anew: %s", self.config.name, error
            )
            self._replacing = True
            self.windows.replug()

    def _start(self, backend: Backend) -> list[int]:
        """Start the rings that are to run; say which."""
        started = [
            index
            for index, ring in enumerate(self.leases)
            if ring.state is RingState.STOPPED and backend.runs(index)
        ]
        for index in started:
            self.leases[index].step(RingState.RUNNING)
            self.leases[index].renewed_at = self._loop.time()
            self._check_base(backend, index)
        if started:
            log.info("%s: started rings %s", self.config.name, started)
        return started

    def _check_base(self, backend: Backend, index: int) -> None:
        base, used = backend.rings[index].base, backend.used_index(index)
        if base != used:
            log.warning(
                "%s: ring %d is to start at %d, but its used index is %d",
                self.config.name,
                index,
                base,
                used,
            )

    # What the agent sees.

    def _publish(self) -> None:
        """Write the metadata if it has something new to say, and interrupt."""
        content = self._device_entry(), self._regions(), self._ring_entries()
        if content == self._published:
            return
        self._published = content
        self.generation = self.store.metadata.publish(*content)
        self.windows.published(self.generation)
        if self.slave is not None:
            self.slave.vectors.signal_metadata()

    def _device_entry(self) -> md.Device:
        backend, config = self.backend, self.config
        return md.Device(
            instance=self.instance,
            features=int(backend.features) if backend else 0,
            flags=DeviceFlag.MASTER if backend else DeviceFlag(0),
            queue_pairs=config.queue_pairs,
            vectors=config.vectors,
            daemon_peer=md.DAEMON_PEER,
            mtu=backend.mtu if backend else 0,
            region_count=0,  # publish() counts
            ring_count=0,
            name=config.name,
        )

    def _regions(self) -> tuple[md.Region, ...]:
        """Return the regions in windows that are shown."""
        if self.backend is None:
            return ()
        shown = self.windows.numbers | {0}
        return tuple(r for r in self.backend.memory.metadata() if r.window in shown)

    def _ring_entries(self) -> tuple[md.Ring, ...]:
        peer = self.slave.peers.call_peer if self.slave else None
        wishes = self.backend.rings if self.backend else [None] * len(self.leases)
        return tuple(
            ring.entry(wish, peer)
            for ring, wish in zip(self.leases, wishes, strict=True)
        )

    def _renew(self, ring: Lease) -> None:
        """Give a running ring to the agent anew, from where it stands."""
        assert self.backend is not None, "a running ring of nobody"
        wish = self.backend.rings[ring.index]
        wish.base = self.backend.used_index(ring.index)
        ring.renew(self._loop.time())

    def _renew_all(self) -> None:
        for ring in self.leases:
            if ring.running:
                self._renew(ring)

    # The slave.

    def slave_connected(self, port: SlavePort) -> None:
        """A slave is there: tell it all, in one go."""
        assert self.slave is None, "one slave at a time"
        log.info("%s: slave connected (pid %d)", self.config.name, port.pid)
        self.agent.forget()
        vectors = VectorSet(self._kicks())
        store, loop = self.store, self._loop
        self.slave = Slave(
            *(port, loop, store.file, vectors, self._doorbell),
            unplugged=self.config.plugged,
        )
        self._renew_all()
        self._settle()
        self._publish()

    def _kicks(self) -> list[Notifier | None]:
        """Return the kicks that a slave may have for its vectors, by ring."""
        backend = self.backend
        if backend is None:
            return [None] * len(self.leases)
        return [
            ring.kick if backend.runs(index) else None
            for index, ring in enumerate(backend.rings)
        ]

    def slave_gone(self) -> None:
        """It is gone, its agent with it; another may come."""
        if self.slave is None:
            return
        log.info("%s: slave disconnected", self.config.name)
        for ring in self.leases:
            ring.relay_kicks(self._loop, None, None)
        self.slave.close()
        self.slave = None
        self._replacing = False
        self.agent.forget()
        self._renew_all()
        self._publish()
        if self._wait is not None:
            self._stopped(self._wait, answered=False)

    def _on_doorbell(self) -> None:
        self._doorbell.drain()
        self._look_at_agent()

    def _look_at_agent(self) -> None:
        """Act on what the agent may have changed in its part.

        It is looked at often: what it is told is put together only if that is new.
        """
        before = self._sessions.last
        self._sample_agent()
        self._check_wait()
        for ring in self.leases:
            if ring.running:
                self._look_at_ring(ring)
        if self._sessions.last != before:
            self._publish()
        if self.slave is not None:
            self.slave.retire(self.agent.entry.generation)
        self._retire_windows()

    def _sample_agent(self) -> None:
        """Look at what it says; another one than before gets all rings anew."""
        if self.agent.sample(self._loop.time()):
            self._renew_all()

    def _retire_windows(self) -> None:
        if self.backend is not None and self.backend.waiting:
            return  # what it is about to take may be in no memory table yet
        self.windows.retire(self.agent.entry.generation, present=self.agent.present)
        memory = self.backend.memory.windows if self.backend else frozenset()
        self.store.keep(memory | self.windows.numbers)

    def _look_at_ring(self, ring: Lease) -> None:
        """See whether the agent has left a ring that it is to serve."""
        try:
            said = self.store.metadata.agent_ring(ring.index)
        except ProtocolError:
            return
        if said.session != ring.session:
            return
        if said.state is AgentRingState.BROKEN and ring.reported != ring.session:
            ring.reported = ring.session
            self._report_broken(ring)
        elif said.state is AgentRingState.FENCED and self._may_renew(ring):
            name = self.config.name
            log.info("%s: ring %d was fenced; giving it anew", name, ring.index)
            self._renew(ring)

    def _may_renew(self, ring: Lease) -> bool:
        return self._loop.time() - ring.renewed_at >= RENEW_PAUSE

    def _report_broken(self, ring: Lease) -> None:
        assert self.backend is not None, "a running ring of nobody"
        log.warning(
            "%s: the master's driver broke ring %d; it works again when the driver "
            "is loaded anew",
            self.config.name,
            ring.index,
        )
        err = self.backend.rings[ring.index].err
        if err is not None:
            err.signal()

    # Time.

    def _tick(self) -> None:
        self._tick_timer = self._loop.call_later(TICK, self._tick)
        if self.store.restore():
            self._restored()
        for text in self.store.cut():
            log.warning("%s: %s", self.config.name, text)
        self._ticks += 1
        if self._ticks % 2:
            self.store.metadata.beat()
        self._look_at_agent()

    def _restored(self) -> None:
        """Somebody cut our memory: the agent finds all of it anew."""
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            log.error(
                "%s: somebody cut %s; its size is back, what was cut is lost (who may "
                "open it is up to --socket-mode and --socket-group)",
                self.config.name,
                self.config.arena,
            )
        self.store.metadata.format()
        self._published = None
        self._renew_all()
        self._publish()
