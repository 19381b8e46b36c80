# SPDX-License-Identifier: Apache-2.0
"""One device: the session with its front-end, and what that means to its slave.

Theory of operation.  The front-end describes its rings in many small messages
(`vhost_user/front_end_setup.py` keeps what they say).  Once they have been quiet for
some milliseconds the device *settles*: it introduces the call eventfds to the slave as
a peer, publishes the metadata, and interrupts the agent.  A message that stops a ring
is different: the metadata is published at once, and the front-end gets its answer when
the agent says that it has stopped, or has had its time.  A ring that is only disabled
is taken from the agent when the device settles, and no front-end waits.

`Device` calls the others, and none of them calls it but through the loop:

- `Backend` serves the front-end's messages, and says whether one needs a quiesce; what
  they have set up is its `FrontEndSetup`;
- `Publisher` holds the leases of the rings and writes what the agent is shown;
- `RingHandover` gives rings to the agent and takes them back, with two waits for the
  agent: one while the front-end has no answer, and one for rings that were disabled;
- `AgentView` and `RingReports` read what the agent says of itself and of its rings;
- `ShownWindows` opens the windows' sockets and plugs them into a slave VM;
- `Slave` is the ivshmem connection with its peers.

Nothing here waits: the loop calls back, and the daemon calls `tick`.
"""

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack

from vhostpci_shared.errors import Said, code_of, said
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from ..config.commands import master_arguments
from ..config.device import DeviceConfig
from ..errors import HostError
from ..fds import Notifier
from ..interfaces import Json, Loop, MasterPort, never, nothing
from ..ivshmem.doorbells import VectorSet
from ..ivshmem.peers import PeersExhausted
from ..ivshmem.relays import Relays
from ..ivshmem.slave import Slave, SlavePort
from ..memory.regions import Store
from ..vhost_user.backend import Answer, Backend
from ..vhost_user.front_end_setup import FrontEndSetup, Quiesce
from ..vhost_user.message import Message
from ..vhost_user.vring import what_to_do_outside
from .agent_view import AgentView
from .debounce import Debounce
from .kept import DeviceLeft
from .offer import Offer
from .peer_log import PeerLog
from .publisher import Publisher
from .quiesce import POLL
from .restoration import Restoration
from .ring_handover import RingHandover
from .ring_lease import Lease
from .ring_reports import RingReports
from .stale_slave import StaleSlave
from .traffic import Traffic
from .windows import ShownWindows

log = logging.getLogger(__name__)


class Device:
    """One device, from the daemon's start to its end.

    Args:
        config: what it is configured to be.
        store: has its memory; closed with the device.
        windows: shows the master's memory to the slave; closed with the device.
        loop: calls the device back.
        peer_log: logs what the front-end and the slave cause, a few lines a minute.
        relays: passes kicks and calls on.
        save: writes the state for a successor; called before anything of it is seen by
            another process.
        kept: says whether the front-end's connection outlives this daemon.
        left: what a daemon before us has left; call `go_on` when all of it is there.

    Raises:
        StateError: `left` does not fit the device.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: Store,
        windows: ShownWindows,
        loop: Loop,
        peer_log: PeerLog,
        relays: Relays,
        *,
        save: Callable[[], None] = nothing,
        kept: Callable[[], bool] = never,
        left: DeviceLeft | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self.windows = windows
        self.backend: Backend | None = None
        self.master: MasterPort | None = None
        self.slave: Slave | None = None
        self._metadata = store.metadata
        self.agent = AgentView(store.metadata, config.name, config.vectors, peer_log)
        self.offer = Offer(config.features, self.agent)
        self._save = save
        self._kept = kept
        self.publisher = self._new_publisher(left)
        self._stale_slave = StaleSlave(plugged=config.plugged)
        self.cleared: Json | None = None
        """What `stats` subtracts, since it was cleared."""
        self.traffic = Traffic(store.metadata, config.rings)
        self._reports = RingReports(config, store.metadata, self.publisher)
        self._loop = loop
        self._log = peer_log
        self._relays = relays
        self.doorbell = _doorbell(left)
        self._debounce = Debounce(loop, self._settle)
        self._handover = self._new_handover()
        self._replacing = False
        self._restoration = Restoration(config.name, store, loop, self._restored)
        self._begin(left)

    def _begin(self, left: DeviceLeft | None) -> None:
        if left is None:
            self._publish()
        else:
            self.agent.offers = left.state.agent.offers
        self._loop.add_reader(self.doorbell.fileno(), self._on_doorbell)

    def _new_publisher(self, left: DeviceLeft | None) -> Publisher:
        instance = random.getrandbits(63) | 1
        shown = None if left is None else left.state.publisher
        return Publisher(self.config, self._metadata, instance, shown)

    def _new_handover(self) -> RingHandover:
        return RingHandover(
            *(self.publisher, self.agent, self._loop, self._log),
            sample=self._sample_agent,
            publish=self._publish,
            look=self._look_at_agent,
        )

    @property
    def leases(self) -> list[Lease]:
        """The rings as the agent knows them, by index."""
        return self.publisher.leases

    @property
    def setup(self) -> FrontEndSetup | None:
        """What the front-end has set up; None without a front-end."""
        return self.backend.setup if self.backend is not None else None

    @property
    def rings_run(self) -> bool:
        """Whether the front-end runs any ring, with an agent or without one."""
        return any(lease.running for lease in self.leases)

    @property
    def mismatch(self) -> str:
        """What lacks for the master's driver, and what to do; empty if nothing does."""
        return self.offer.mismatch(self.setup.features) if self.setup else ""

    @property
    def slave_problem(self) -> str:
        """Why the slave VM cannot be served, and what to do; empty if it can."""
        return self._stale_slave.problem

    def close(self) -> None:
        """Tell the slave that the master is gone, and release everything.

        Run every step even if one fails: a later daemon needs these files unlocked.
        """
        with ExitStack() as stack:
            stack.callback(self.store.close)
            stack.callback(self.windows.close)
            stack.callback(self.doorbell.close)
            stack.callback(self._loop.remove_reader, self.doorbell.fileno())
            stack.callback(self.slave_gone)
            stack.callback(self.master_gone)

    # The session with the front-end.

    def master_connected(self, port: MasterPort) -> None:
        """Begin a session: a front-end has connected and said nothing yet."""
        assert self.master is None, "one front-end at a time"
        # A QEMU that connects and leaves again and again is news only once.
        if not port.returning:
            text = f"front-end connected (pid {port.pid})"
            self._log.info(text, kind=text)
        self.master = port
        self.backend = self.new_backend(port)
        # The master that is gone may have harmed it.
        self._restoration.look(sizes=False)
        self._publish()

    def new_backend(self, port: MasterPort, *, known: bool = False) -> Backend:
        """Return a back-end for a front-end that has said nothing yet."""
        return Backend(
            self.config.queue_pairs,
            self.store.windows(port.pid, self._for_vm, known=known),
            self._metadata.position,
            lambda index: self.leases[index].origin,
            lambda: self.offer.to(port.pid),
            confined=self.config.confined is not None,
            outside=what_to_do_outside(self.config),
        )

    def master_gone(self, *, returns: bool = False) -> None:
        """End the session; a no-op without one.

        QEMU's own virtio-net has taken the rings over by now, so the agent's leases end
        at once: there is nothing to wait for.

        Args:
            returns: whether the front-end is expected back, with the same memory: the
                windows stay.
        """
        if self.master is None or self.backend is None:
            return
        if not self.master.returning or self.backend.setup.useful:
            pid = self.master.pid
            self._log.info("front-end disconnected", f"front-end (pid {pid}) left")
        self._note_refusal(self.master.pid, self.backend.setup)
        self._debounce.cancel()
        self._handover.end_all()
        if self.slave is not None:
            self.slave.withdraw(self.publisher.generation)
        self.backend.close()
        self.backend = self.master = None
        if not returns:
            self.windows.show(frozenset(), device=False)
        self._publish()
        self._retire_windows()
        self._keep_files()
        self._save()

    def _note_refusal(self, pid: int, setup: FrontEndSetup) -> None:
        """Note whether the front-end may have left because of what it was offered."""
        if self.offer.left(pid, acknowledged=bool(setup.features)):
            text = f"front-end (pid {pid}) left without features: it is offered all"
            self._log.info(f"{text} that we have when it comes again", text)

    def forget_master(self) -> None:
        """Show nothing more of a front-end that was expected back; no-op with one."""
        if self.master is None:
            self.windows.show(frozenset(), device=False)
            # The metadata names none since that front-end has gone.
            self.windows.published(self.publisher.generation)
            self._retire_windows()

    def _for_vm(self) -> bool:
        """Whether the slave is a VM, or will be one."""
        slave = self.slave
        return self.config.plugged or (slave is not None and not slave.port.is_process)

    def receive(self, message: Message) -> None:
        """Act on one message of the front-end.

        If the answer has to wait for the agent, the connection is paused: the front-end
        sends nothing that we read until it has its answer.
        """
        assert self.backend is not None, "no front-end connected"
        try:
            self._answer(self.backend.receive(message))
        except ProtocolError as error:
            self._drop_master(error)

    def _answer(self, outcome: Answer | Quiesce) -> None:
        """Do what the back-end says until there is an answer to send, or a wait."""
        assert self.backend is not None, "no front-end connected"
        assert self.master is not None, "no front-end connected"
        while isinstance(outcome, Quiesce):
            if self._handover.stop(outcome.rings):
                self.master.pause()
                return
            outcome = self.backend.resume()
        self._keep_files()
        if outcome.refusal:
            kind = f"refusal of pid {self.master.pid}"
            text = Said(f"refused {outcome.refusal}", code_of(outcome.refusal))
            self._log.warn(text, kind)
        self._debounce.on_message()
        if outcome.reply:
            self.master.send(outcome.reply)

    def _drop_master(self, error: ProtocolError | HostError) -> None:
        # The connection closes within this call, and `master_gone` is called.
        assert self.master is not None, "no front-end connected"
        self.master.drop(said(error))

    # Stopping rings.

    def _check_waits(self) -> None:
        """End a wait if the agent has stopped its rings, or has had its time."""
        late = self._handover.is_late(self._handover.disabled)
        if late is not None:
            self._end_disabling(fence=late)
        late = self._handover.is_late(self._handover.answer)
        if late is not None:
            self._end_wait(fence=late)

    def _end_disabling(self, *, fence: bool) -> None:
        """Note where the disabled rings stand: the agent has stopped, or is fenced."""
        self._handover.end_disabled(self.setup)
        if fence:
            self._publish()
        # They may have been enabled again meanwhile, or further rings disabled.
        self._debounce.on_message()

    def _end_wait(self, *, fence: bool) -> None:
        """Give the front-end its answer: the agent has stopped, or is fenced now."""
        assert self.backend is not None, "no front-end connected"
        assert self.master is not None, "no front-end connected"
        master = self.master
        self._handover.end_answer()
        if fence:
            # Before the answer: QEMU may touch the rings as soon as it has it.
            self._publish()
        try:
            self._answer(self.backend.resume())
        except ProtocolError as error:
            self._drop_master(error)
        if not self._handover.answer.active:
            master.resume()

    # Settling.

    def _settle(self) -> None:
        """Give the agent what the front-end has set up."""
        self._debounce.cancel()
        backend = self.backend
        if backend is None or backend.waiting:
            return
        setup = backend.setup
        if setup.memoryless:
            self._say_memoryless()
        if not self._show_windows(setup):
            return
        self._handover.stop_disabled(setup)
        try:
            introduced = self._introduce_calls(setup)
        except PeersExhausted as error:
            self._replace_slave(error)
            return
        if self.slave is not None and self.slave.behind():
            # QEMU loses a doorbell for a peer that it has not read of, so do not
            # publish that peer yet.
            self._debounce.retry_in(POLL)
            return
        started = self._handover.start(setup)
        try:
            self._relay_kicks(setup)
        except ProtocolError as error:
            self._drop_master(error)
            return
        self._publish()
        if self.slave is not None and (introduced or started):
            # The driver may wait for an interrupt that went to the old call eventfds.
            self.slave.signal_calls()

    def _say_memoryless(self) -> None:
        assert self.master is not None, "no front-end connected"
        arguments = master_arguments(self.config.name, self.config.mode)
        self._log.warn_once(
            f"front-end (pid {self.master.pid}) shows no memory: its driver is loaded, "
            "and no packet can cross, because its memory is not shared. Start it with "
            f"the memory arguments of `{arguments}` (share=on; for libvirt <access "
            "mode='shared'/>)"
        )

    def _show_windows(self, setup: FrontEndSetup) -> bool:
        """Open a socket for each window before the agent is told of it."""
        device = any(setup.runs(index) for index in range(len(self.leases)))
        try:
            self.windows.show(
                setup.memory.windows, device=device or self.windows.device
            )
        except HostError as error:
            self._drop_master(error)
            return False
        return True

    def _relay_kicks(self, setup: FrontEndSetup) -> None:
        vectors = self.slave.kick_vectors if self.slave else None
        for lease, vring in zip(self.leases, setup.rings, strict=True):
            lease.relay_kicks(self._relays, vring.kick, vectors)

    def _introduce_calls(self, setup: FrontEndSetup) -> bool:
        if self.slave is None:
            return False
        calls = [
            vring.call if setup.runs(index) else None
            for index, vring in enumerate(setup.rings)
        ]
        return self.slave.introduce(calls, self._kicks(), self.publisher.generation)

    def _replace_slave(self, error: PeersExhausted) -> None:
        """Replace the slave's ivshmem function: its QEMU can take no other peer."""
        assert self.slave is not None, "no slave connected"
        if self.windows.plugger is None:
            text = f"{error}: unplug the slave's device and plug it again"
            self.slave.port.drop(Said(text, error.code))
        elif not self._replacing:
            log.info(
                "%s: unplugging the slave's device and plugging it again: %s",
                self.config.name,
                error,
            )
            self._replacing = True
            self.windows.replug()

    def _publish(self) -> None:
        """Show the agent what is new, and interrupt it."""
        call_peer = self.slave.peers.call_peer if self.slave else None
        if self.publisher.publish(
            self.setup,
            call_peer,
            self.windows.numbers,
            slave=self.slave is not None,
            takes_kicks=self.slave is not None and self.slave.port.takes_kicks,
            kept=self._kept(),
            # A successor that finds less in the metadata than in the state publishes
            # it; what is in the metadata alone would be given to the agent twice.
            before=self._save,
        ):
            self.windows.published(self.publisher.generation)
            if self.slave is not None:
                self.slave.vectors.signal_metadata()

    # The slave.

    def slave_connected(self, port: SlavePort) -> None:
        """Introduce a slave to the device: its whole handshake is sent at once."""
        assert self.slave is None, "one slave at a time"
        text = f"slave connected (pid {port.pid})"
        self._log.info(text, kind=text)
        self.agent.forget(connected=True)
        kicks = [None] * len(self.leases) if port.takes_kicks else self._kicks()
        vectors = VectorSet(kicks)
        self.slave = self.new_slave(port, vectors)
        self.slave.greet(self.store.file, self.doorbell)
        self._renew_running()
        self._settle()
        self._publish()

    def new_slave(self, port: SlavePort, vectors: VectorSet) -> Slave:
        """Return a slave that knows of no peer yet."""
        relays, plugged = self._relays, self.config.plugged
        return Slave(port, self._loop, vectors, relays=relays, plugged=plugged)

    def _kicks(self) -> list[Notifier | None]:
        """Return the kicks that a slave may have for its vectors, by ring."""
        setup = self.setup
        if setup is None:
            return [None] * len(self.leases)
        return [
            vring.kick if setup.runs(index) else None
            for index, vring in enumerate(setup.rings)
        ]

    def slave_gone(self) -> None:
        """Forget the slave and its agent; a no-op without a slave."""
        if self.slave is None:
            return
        pid = self.slave.port.pid
        self._log.info("slave disconnected", f"slave (pid {pid}) left")
        for lease in self.leases:
            lease.relay_kicks(self._relays, None, None)
        self.slave.close()
        self.slave = None
        self._replacing = False
        self.agent.forget(connected=False)
        self._renew_running()
        self._publish()
        if self._handover.disabled.active:
            self._end_disabling(fence=True)
        if self._handover.answer.active:
            self._end_wait(fence=True)

    # The agent.

    def _on_doorbell(self) -> None:
        self.doorbell.drain()
        self._look_at_agent()

    def _look_at_agent(self) -> None:
        """Act on what the agent has changed in its part of the metadata."""
        before = self.publisher.last_session
        self._sample_agent()
        self._check_waits()
        self._reports.look(self.setup, self._loop.time())
        if self.publisher.last_session != before:
            self._publish()
        if self.slave is not None and self.slave.retiring:
            self.slave.retire(self.agent.entry.generation)
        self._retire_windows()

    def _sample_agent(self) -> None:
        """Read what the agent says; one that follows another gets new sessions."""
        present, offers = self.agent.present, self.agent.offers
        if self.agent.sample(self._loop.time()):
            self._renew_running()
        if self.agent.offers != offers:
            self._save()
        # One that comes may have served an earlier daemon, and know where rings stand.
        came = self.agent.present and not present
        if came and self.setup is not None and self.setup.forget_lost():
            self._debounce.on_message()

    def _renew_running(self) -> None:
        self.publisher.renew_running(self._loop.time())

    def _retire_windows(self) -> None:
        """Close the windows that the agent uses no more."""
        if self.backend is not None and self.backend.waiting:
            return  # the message that waits may name a window that no table has yet
        # One that runs no ring may have them mapped all the same.
        generation, follows = self.agent.entry.generation, self.agent.follows
        if self.windows.retire(generation, present=follows):
            self._keep_files()
            # Else the keeper would have the memory of a machine that is gone.
            self._save()

    def _keep_files(self) -> None:
        """Close the memory files that neither the front-end nor the slave has."""
        memory = self.setup.memory.windows if self.setup else frozenset()
        self.store.drop_windows_except(memory | self.windows.numbers)

    # What a daemon before us has left: `succession.py` has the rest.

    def go_on(self) -> None:
        """Serve again, when everything is there that was left."""
        self._metadata.beat()
        self._restoration.look(sizes=False)
        self._publish()
        if self.slave is not None:
            self.slave.signal_all()
        if self.setup is None:
            return
        # The agent may have been told to stop these, or the front-end may have disabled
        # them.  A request that waits for it comes again: it is still in its socket.
        if stopping := self.publisher.stopping():
            self._handover.disabled.begin(self.publisher.generation, stopping)
        # Not at once: a request that stops rings, and that was not served to its end,
        # is served first.
        self._debounce.on_message()

    # Time.

    def tick(self) -> None:
        """Beat the heart, and look at the metadata: four times a second."""
        # There may be hundreds of devices with nothing to do but this: make no system
        # call here, and read only two places in memory.
        if not self._metadata.formatted():
            self._restoration.look(sizes=False)
        # Each time: an agent that has given the rings to another process takes them
        # back when some beats are missing.
        self._metadata.beat()
        if not self.agent.only_beats(self._loop.time()) or self._is_due():
            self._look_at_agent()

    def _is_due(self) -> bool:
        """Whether there is something to do although the agent says nothing new."""
        slave = self.slave
        return (
            self._reports.later
            or self.windows.retiring
            or (slave is not None and slave.retiring)
        )

    def slow_tick(self, *, names: bool) -> None:
        """Look at what takes system calls, and at all that the agent writes.

        This is once a second.  An agent rings a doorbell when it has news of a ring, so
        it is only the second way to that news.

        Args:
            names: whether a name in the memory files' directory may have changed.
        """
        self._restoration.look(sizes=True)
        self._look_at_agent()
        self.traffic.sample(self._loop.time())
        features = self.setup.features if self.setup else Feature(0)
        if mismatch := self.offer.new_mismatch(features):
            self._log.warn(mismatch, "mismatch")  # the slave may change it each second
        for text in self.store.new_problems(names=names):
            log.warning("%s: %s", self.config.name, text)
        if problem := self._stale_slave.look(
            connected=self.slave is not None, agent_lives=self.agent.lives
        ):
            log.warning("%s: %s", self.config.name, problem)

    def _restored(self) -> None:
        """Write the metadata again, which was lost."""
        self.publisher.reformat()
        self._renew_running()
        self._publish()


def _doorbell(left: DeviceLeft | None) -> Notifier:
    return left.kept.eventfd(left.state.doorbell) if left else Notifier.new()
