# SPDX-License-Identifier: Apache-2.0
"""The back-end against a model: any messages, in any order (rust-vmm #343, #227)."""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.descriptors import open_descriptors
from tests.fakes.frontend import RingAt, region
from tests.fakes.windows import MIB, Ram
from vhostpci_host.fds import Fd
from vhostpci_host.vhost_user.backend import Answer, Backend
from vhostpci_host.vhost_user.front_end_setup import Quiesce
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature

RINGS = 4
ring_index = st.integers(0, RINGS - 1)


class Model:
    """One ring, as the specification's "Ring states" has it."""

    def __init__(self) -> None:
        self.size = self.addressed = self.kicked = False
        self.enable: bool | None = None
        self.base = 0
        self.base_set = False  # and it has not run since

    def ready(self, memory: bool) -> bool:
        return self.size and self.addressed and self.kicked and memory


class Session(RuleBasedStateMachine):
    """A front-end that may send any request at any time, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.before = len(open_descriptors())
        self.ram = Ram()
        self.backend = Backend(RINGS // 2, self.ram)
        self.model = [Model() for _ in range(RINGS)]
        self.memory = self.negotiated = False
        self.disabled: set[int] = set()  # since the last request of another kind
        self.features = 0
        self.used = [0] * RINGS

    def teardown(self) -> None:
        self.backend.close()
        self.ram.close()
        assert len(open_descriptors()) == self.before

    def send(self, request: Request, payload: vu.Payload, *fds: int) -> set[int]:
        """Send; return the rings that were quiesced, each once and only if ready."""
        ready = {i for i in range(RINGS) if self.model[i].ready(self.memory)}
        ours = [Fd(os.dup(fd)) for fd in fds]
        outcome = self.backend.receive(Message.of(request, payload, *ours))
        if request is not Request.SET_VRING_ENABLE:
            outcome = self.finish_disabling(outcome, ready)
        quiesced: set[int] = set()
        while isinstance(outcome, Quiesce):
            assert outcome.rings <= ready
            assert not quiesced & outcome.rings
            quiesced |= outcome.rings
            outcome = self.backend.resume()
        assert isinstance(outcome, Answer)
        self.reply = outcome.reply
        self.note_stopped(quiesced)
        return quiesced

    def note_stopped(self, rings: set[int]) -> None:
        for index in rings:
            if not self.model[index].base_set:
                self.model[index].base = self.used[index]

    def finish_disabling(
        self, outcome: Answer | Quiesce, ready: set[int]
    ) -> Answer | Quiesce:
        """Stop the rings that were disabled; return what follows."""
        rings, self.disabled = self.disabled & ready, set()
        if not rings:
            return outcome
        assert outcome == Quiesce(frozenset(rings))
        self.note_stopped(rings)
        return self.backend.resume()

    def ready(self) -> set[int]:
        return {i for i in range(RINGS) if self.model[i].ready(self.memory)}

    def enabled(self, index: int) -> bool:
        enable = self.model[index].enable
        return not self.negotiated if enable is None else enable

    @rule(negotiate=st.booleans())
    def set_features(self, negotiate: bool) -> None:
        features = Feature.F_VERSION_1
        if negotiate:
            features |= Feature.F_PROTOCOL_FEATURES
        quiesced = self.send(Request.SET_FEATURES, vu.U64(features))
        assert quiesced == (self.ready() if features != self.features else set())
        self.features, self.negotiated = int(features), negotiate

    @rule(present=st.booleans())
    def set_mem_table(self, present: bool) -> None:
        regions = (region(self.ram.size),) if present else ()
        before = self.ready()
        fds = [self.ram.fd] * present
        assert self.send(Request.SET_MEM_TABLE, vu.MemTable(regions), *fds) == before
        self.memory = present

    @rule(index=ring_index)
    def set_vring_num(self, index: int) -> None:
        self.send(Request.SET_VRING_NUM, vu.VringState(index, 256))
        self.model[index].size = True

    @rule(index=ring_index)
    def set_vring_addr(self, index: int) -> None:
        at = RingAt.nth(index)
        base = region(MIB).user_addr
        addr = vu.VringAddr(index, 0, base + at.desc, base + at.used, base + at.avail)
        self.send(Request.SET_VRING_ADDR, addr)
        self.model[index].addressed = True

    @rule(index=ring_index, base=st.integers(0, 65535))
    def set_vring_base(self, index: int, base: int) -> None:
        self.send(Request.SET_VRING_BASE, vu.VringState(index, base))
        self.model[index].base, self.model[index].base_set = base, True

    @rule(index=ring_index)
    def start(self, index: int) -> None:
        """Start a ring, as the device does when the front-end is quiet."""
        if self.backend.setup.runs(index):
            assert self.backend.setup.find_position(index) == ""
            self.model[index].base_set = False

    @rule(index=ring_index, polled=st.booleans())
    def set_vring_kick(self, index: int, polled: bool) -> None:
        fds = [] if polled else [os.eventfd(0)]
        self.send(Request.SET_VRING_KICK, vu.VringFd(index, polled), *fds)
        for fd in fds:
            os.close(fd)
        self.model[index].kicked = True

    @rule(index=ring_index, polled=st.booleans())
    def set_vring_call(self, index: int, polled: bool) -> None:
        fds = [] if polled else [os.eventfd(0)]
        assert not self.send(Request.SET_VRING_CALL, vu.VringFd(index, polled), *fds)
        for fd in fds:
            os.close(fd)

    @rule(index=ring_index, enable=st.booleans())
    def set_vring_enable(self, index: int, enable: bool) -> None:
        if index in self.ready() and self.enabled(index) and not enable:
            self.disabled.add(index)
        if enable:
            self.disabled.discard(index)
        assert not self.send(Request.SET_VRING_ENABLE, vu.VringState(index, enable))
        self.model[index].enable = enable

    @rule(index=ring_index)
    def get_vring_base(self, index: int) -> None:
        ready = self.ready()
        quiesced = self.send(Request.GET_VRING_BASE, vu.VringState(index, 0))
        assert quiesced == ready & {index}
        state = vu.VringState(index, self.model[index].base)
        assert self.reply == vu.reply(Request.GET_VRING_BASE, state)
        self.model[index].kicked = False

    @rule()
    def reset_owner(self) -> None:
        assert not self.send(Request.RESET_OWNER, vu.Empty())

    @rule()
    def reset_device(self) -> None:
        before = self.ready()
        assert self.send(Request.RESET_DEVICE, vu.Empty()) == before
        self.model = [Model() for _ in range(RINGS)]
        for ring in self.model:
            ring.enable = False
        self.features, self.negotiated = 0, False

    @precondition(lambda self: any(self.backend.setup.runs(i) for i in range(RINGS)))
    @rule(index=ring_index, packets=st.integers(1, 1000))
    def packets_move(self, index: int, packets: int) -> None:
        self.used[index] = (self.used[index] + packets) % 2**16
        self.ram.use(RingAt.nth(index).used, self.used[index])

    @invariant()
    def rings_run_as_the_model_has_it(self) -> None:
        for index in range(RINGS):
            ready = self.model[index].ready(self.memory)
            assert self.backend.setup.rings[index].ready == ready
            assert self.backend.setup.runs(index) == (ready and self.enabled(index))

    @invariant()
    def descriptors_are_bounded(self) -> None:
        assert len(open_descriptors()) <= self.before + 1 + 3 * RINGS


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
