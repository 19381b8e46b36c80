# SPDX-License-Identifier: Apache-2.0
"""Any order, any death: random walks over all that may end, hang and come back.

A walk has few programs and many events, since programs are slow to start.  Behind each
event the world (`matrix_world.py`) is compared with the model (`matrix_model.py`):
connections, the TAP's carrier, packets both ways, descriptors, memory, and the logs.

    VHOSTPCI_MATRIX=200 pytest -s tests/process/test_matrix.py

does 200 walks, which differ from one time to the next, shows them, and prints how long
no packet crossed because of each event.
"""

import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fakes.frontend import Dropped
from tests.fakes.netns import private_network
from tests.process.matrix_model import STANDBY, UNKNOWN, Life, Model, Plan
from tests.process.matrix_world import World, kinds
from tests.waiting import wait_for

pytestmark = pytest.mark.process

WALKS = int(os.environ.get("VHOSTPCI_MATRIX", "0"))
IN_CI = 4
"""Walks without that variable; the first one does next to nothing."""
STEPS = 30
SETTLED = 30.0
"""Seconds until everything is as it must be: on an idle machine less than two."""
QUIET = 0.15
"""Seconds in which nothing may come back, where nothing can."""
GROWTH = 24 << 20
"""Bytes by which the memory of a program may grow in a walk."""
BRIEF = 0.3
"""Seconds for which a program is stopped so that nothing notices."""

DESCRIPTORS: dict[tuple[object, ...], Counter[str]] = {}
"""How many descriptors of each kind a program had when a situation was first seen."""
GAPS: dict[str, list[float]] = {}
"""For how long no packet came back after each event."""
FAILURES: list[Exception] = []
"""The first failure.  Hypothesis would repeat its walk, in which it may not come."""

Condition = Callable[[Model], bool]
Method = Callable[["Walk"], None]


def event(name: str, when: Condition) -> Callable[[Method], Any]:
    """Make a rule of a method: an event that may happen where `when` says so."""

    def decorate(method: Method) -> Any:
        @functools.wraps(method)
        def happens(self: "Walk") -> None:
            self.begin(name)
            with self.noting_failures():
                try:
                    method(self)
                except Dropped:
                    if not self.model.may_be_dropped:
                        raise
                    # It was about to do something with its rings: start it afresh.
                    self.kill_master_now()

        return precondition(lambda self: when(self.model))(rule()(happens))

    return decorate


def working(model: Model) -> bool:
    """Whether the master can speak to the daemon."""
    return model.served and model.linked and model.master is Life.RUNS


class Walk(RuleBasedStateMachine):
    """One walk: the model and the world."""

    model: Model
    world: World

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._flowed = False
        self._since, self._name = 0.0, ""

    @initialize(
        keeper=st.sampled_from(["auto", "none", "standby"]),
        attach=st.booleans(),
        packed=st.booleans(),
        keep_tap=st.booleans(),
        grace=st.sampled_from(["off", "1"]),
        order=st.permutations(["daemon", "agent", "master"]),
    )
    def start(
        self,
        keeper: str,
        attach: bool,
        packed: bool,
        keep_tap: bool,
        grace: str,
        order: Sequence[str],
    ) -> None:
        """Start everything in any order."""
        if FAILURES:
            raise FAILURES[0]  # Hypothesis repeats the walk
        self.model = Model(Plan(keeper, attach, packed, keep_tap, grace))
        self._stack.enter_context(private_network())
        directory = Path(self._stack.enter_context(TemporaryDirectory()))
        world = World(directory, self.model.plan)
        self.world = self._stack.enter_context(world)
        self.begin("everything starts")
        self._note(f"{self.model.plan}, order {order}")
        with self.noting_failures():
            for one in order:
                # A master's QEMU waits for the daemon, which makes its memory.
                if one != "agent" and self.model.daemon is Life.ABSENT:
                    self._start_daemon()
                if one == "agent":
                    self._start_agent()
                elif one == "master":
                    self._start_master()

    def begin(self, name: str) -> None:
        """Note an event that is about to happen."""
        self._flowed, self._since = self.model.flows, time.monotonic()
        self._name = name
        self._note(name)

    def _note(self, text: str) -> None:
        self.model.events.append(text)
        if WALKS:
            print(f"{time.monotonic():.2f} {text}", flush=True)

    @contextmanager
    def noting_failures(self) -> Iterator[None]:
        """Note a failure in the block, which ends all walks."""
        try:
            yield
        except Exception as error:
            events = "\n".join(self.model.events)
            error.add_note(f"{self.world.logs()}\nafter:\n{events}\n{self.model}")
            FAILURES.append(error)
            raise

    # The first rule is the one that Hypothesis's first walk takes, again and again.

    @event("nothing", lambda model: True)
    def look(self) -> None:
        """Look only."""

    # The daemon.

    @event("daemon starts", lambda model: model.daemon is Life.ABSENT)
    def start_daemon(self) -> None:
        """Start it, with a keeper if the plan says so."""
        self._start_daemon()

    def _start_daemon(self) -> None:
        self.world.start_the_daemon()
        self.model.daemon_starts()

    @event("daemon kill -9", lambda model: model.daemon is Life.RUNS)
    def kill_daemon(self) -> None:
        """With a keeper it has a successor."""
        self._kill_daemon()

    def _kill_daemon(self) -> None:
        if self.model.keeper:
            self.world.signal_daemon(signal.SIGKILL)
            self._wait_successor()
        else:
            self.world.end_daemon(signal.SIGKILL)
            self.model.daemon_ends()

    def _wait_successor(self) -> None:
        self.world.wait_successor()
        self.model.daemon_has_successor()

    @event("daemon SIGTERM", lambda model: model.daemon is Life.RUNS)
    def end_daemon(self) -> None:
        """It leaves nothing but the memory of a master."""
        self.world.end_daemon(signal.SIGTERM)
        if self.model.keeper:
            assert self.world.daemon.wait() == 0
        self.model.daemon_ends()
        # A daemon that follows a killed one cannot know whether a master has the arena.
        left = set(self.world.files())
        assert left <= {"net0", "spare"}, left

    @event("daemon SIGUSR2", lambda model: model.served and model.keeper)
    def upgrade_daemon(self) -> None:
        """Have the keeper start another one first."""
        self.world.daemon.send(signal.SIGUSR2)
        self._wait_successor()

    @event("daemon SIGSTOP, SIGCONT", lambda model: model.daemon is Life.RUNS)
    def stop_daemon_briefly(self) -> None:
        """Nothing notices."""
        self.world.signal_daemon(signal.SIGSTOP)
        time.sleep(BRIEF)
        self.world.signal_daemon(signal.SIGCONT)

    @event("daemon SIGSTOP", lambda model: model.daemon is Life.RUNS)
    def hang_daemon(self) -> None:
        """A keeper replaces it."""
        self.world.signal_daemon(signal.SIGSTOP)
        if self.model.keeper:
            self._wait_successor()
        else:
            self.model.daemon = Life.HANGS

    @event("daemon SIGCONT", lambda model: model.daemon is Life.HANGS)
    def continue_daemon(self) -> None:
        """It goes on after it was stopped."""
        self.world.signal_daemon(signal.SIGCONT)
        self.model.daemon_goes_on()

    @event("keeper kill -9", lambda model: model.daemon is Life.RUNS and model.keeper)
    def kill_keeper(self) -> None:
        """The daemon goes on without."""
        self.world.kill_keeper()
        self.model.keeper_is_killed()

    @event(
        "keeper SIGSTOP, SIGCONT",
        lambda model: model.daemon is Life.RUNS and model.keeper,
    )
    def stop_keeper_briefly(self) -> None:
        """The daemon goes on, and is not taken for one that hangs."""
        self.world.signal_keeper(signal.SIGSTOP)
        time.sleep(BRIEF)
        self.world.signal_keeper(signal.SIGCONT)

    @event("reload", lambda model: model.served)
    def reload_file(self) -> None:
        """Another device comes or goes."""
        self.model.spare = not self.model.spare
        self.world.set_spare(there=self.model.spare)

    @event("device is removed", lambda model: model.served)
    def remove_device(self) -> None:
        """An arena goes with it, so its master is ended first."""
        if self.model.master is not Life.ABSENT and not self.model.plan.attach:
            self.kill_master_now()
        self.world.remove_device()
        self.model.device_is_removed()

    @event(
        "device is added",
        lambda model: model.daemon is Life.RUNS and not model.device,
    )
    def add_device(self) -> None:
        """It is served again."""
        self.world.add_device()
        self.model.device_is_added()

    # The agent.

    # Not while a daemon hangs: it ends if it is not answered within five seconds.
    @event(
        "agent starts",
        lambda model: model.agent is Life.ABSENT and model.daemon is not Life.HANGS,
    )
    def start_agent(self) -> None:
        """It serves as soon as there is a daemon."""
        self._start_agent()

    def _start_agent(self) -> None:
        self.world.start_an_agent()
        self.model.agent_starts()

    @event("agent kill -9", lambda model: model.agent is not Life.ABSENT)
    def kill_agent(self) -> None:
        """It leaves its TAP."""
        self.world.agent.end(signal.SIGKILL)
        self.model.agent_ends(killed=True)

    @event(
        "daemon and agent kill -9",
        lambda model: model.daemon is Life.RUNS and model.agent is Life.RUNS,
    )
    def kill_both(self) -> None:
        """At once."""
        self.world.agent.send(signal.SIGKILL)
        self._kill_daemon()
        self.world.agent.wait()
        self.model.agent_ends(killed=True)

    @event("agent SIGTERM", lambda model: model.agent is Life.RUNS)
    def end_agent(self) -> None:
        """It leaves its TAP if it is told to."""
        status = self.world.agent.end()
        # Nothing to give back: it had not got so far as to say anything.
        starting = status == -signal.SIGTERM and not self.world.agent.log
        assert status == 0 or starting, self.world.agent.log
        self.model.agent_ends(killed=False)

    @event(
        "agent is replaced",
        lambda model: model.served and model.agent is Life.RUNS,
    )
    def replace_agent(self) -> None:
        """A second agent waits for the place of the first one."""
        first = self.world.agent
        second = self.world.start_an_agent()
        second.wait_log("another slave is connected")
        first.end()
        self.model.agent_ends(killed=False)
        self.model.agent_starts()

    @event("agent SIGSTOP", lambda model: model.agent is Life.RUNS)
    def hang_agent(self) -> None:
        """Its rings stand still."""
        self.world.signal_agent(signal.SIGSTOP)
        self.model.agent = Life.HANGS

    @event("agent SIGCONT", lambda model: model.agent is Life.HANGS)
    def continue_agent(self) -> None:
        """It goes on after it was stopped."""
        self.world.signal_agent(signal.SIGCONT)
        self.model.agent_goes_on()

    # The master.

    @event(
        "master starts",
        lambda model: model.served and model.master is Life.ABSENT,
    )
    def start_master(self) -> None:
        """A machine boots, and loads its driver."""
        self._start_master()

    def _start_master(self) -> None:
        self.world.start_the_master()
        self.model.master_starts()
        self._load_driver()

    @event("master kill -9", lambda model: model.master is not Life.ABSENT)
    def kill_master(self) -> None:
        """The machine is gone."""
        self.kill_master_now()

    def kill_master_now(self) -> None:
        self.world.master.close()
        self.model.master_ends()

    @event("driver loads", working)
    def load_driver(self) -> None:
        """Load it, or unload and load it, as at a reboot."""
        if self.model.driver:
            self._unload_driver()
        self._load_driver()

    def _load_driver(self) -> None:
        self.world.master.load()
        self.model.driver_loads()

    @event("driver unloads", lambda model: working(model) and model.driver)
    def unload_driver(self) -> None:
        """Give the rings back."""
        self._unload_driver()

    def _unload_driver(self) -> None:
        self.world.master.unload()
        self.model.driver_unloads()

    @event(
        "master stops and starts its rings",
        lambda model: working(model) and model.driver and not model.position_lost,
    )
    def stop_and_start_rings(self) -> None:
        """Its driver goes on, as with `set_link`."""
        self.world.master.stop_and_start()

    @event("master hangs up and returns", working)
    def reconnect_master(self) -> None:
        """Its driver goes on."""
        assert self.world.try_to_return()
        self.model.master_connects()

    @event(
        "master SIGSTOP",
        lambda model: model.master is Life.RUNS and model.driver,
    )
    def hang_master(self) -> None:
        """It neither sends nor takes packets, nor speaks to the daemon."""
        self.world.hang_master()
        self.model.master = Life.HANGS

    @event("master SIGCONT", lambda model: model.master is Life.HANGS)
    def continue_master(self) -> None:
        """It goes on after it was stopped."""
        self.world.continue_master()
        self.model.master = Life.RUNS

    # Strangers.

    @event(
        "stranger at the front-end's socket",
        lambda model: model.served and model.linked,
    )
    def second_front_end(self) -> None:
        """It is refused."""
        self.world.visit("net0.vhost-user")

    @event(
        "stranger at the slave's socket",
        lambda model: model.served and model.agent is Life.RUNS,
    )
    def second_slave(self) -> None:
        """It is refused."""
        self.world.visit("net0.ivshmem")

    # What must be true.

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        """Compare the world with the model."""
        with self.noting_failures():
            self._check_link()
            self._check_carrier()
            self._check_packets()
            self.model.rings_were_seen()
            self._check_descriptors()
            self._check_memory()
            unexpected = self.world.unexpected_lines(self.model.events)
            assert not unexpected, "\n".join(unexpected)
        self._note(f"  {time.monotonic() - self._since:.2f} s")

    def _wait(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        wait_for(condition, what, SETTLED)

    def _check_link(self) -> None:
        """Connect the master again, as its QEMU does; no other connection ends."""
        if self.model.linked and self.world.hung_up():
            assert self.model.may_be_dropped, "the master is disconnected"
            self.model.master_is_dropped()
        elif self.model.must_link and not self.model.linked:
            self._wait(self.world.try_to_return, lambda: "the master returns")
            self.model.master_connects()

    def _check_carrier(self) -> None:
        if self.model.served and self.model.agent is Life.RUNS:
            self._wait(self.world.agent_serves, lambda: "the agent serves")
        expected = self.model.carrier
        if expected != UNKNOWN:
            self._wait(
                lambda: self.world.carrier() == expected,
                lambda: f"carrier {self.world.carrier()}, not {expected}",
            )

    def _check_packets(self) -> None:
        traffic, start = self.world.traffic, time.monotonic()
        if not self.model.flows:
            time.sleep(QUIET)
            assert not traffic.back_since(start), "packets cross"
            return
        self._wait(lambda: traffic.back_since(start), lambda: "no packet crosses")
        gap = traffic.gap(self._since, time.monotonic())
        kind = "gap" if self._flowed else "until packets cross"
        GAPS.setdefault(f"{self._name}: {kind}", []).append(gap)

    def _check_descriptors(self) -> None:
        if self.model.keeper and self.model.plan.keeper == STANDBY:
            # Its socket counts.
            self._wait(self.world.has_heir, lambda: "there is an heir")
        if self.model.agent is Life.RUNS:
            # It has started, and serves or waits for a daemon.
            self._wait(lambda: self.world.agent.log, lambda: "a word of the agent")
        for what, pid in self.world.programs(self.model).items():
            situation = (what, *self.model.situation)
            if situation not in DESCRIPTORS:
                time.sleep(QUIET)
                DESCRIPTORS[situation] = kinds(pid)
            self._wait(
                lambda: not kinds(pid) - DESCRIPTORS[situation],  # noqa: B023
                lambda: f"{what} has {kinds(pid) - DESCRIPTORS[situation]} too many",  # noqa: B023
            )

    def _check_memory(self) -> None:
        for what, pid in self.world.programs(self.model).items():
            growth = self.world.memory_growth(pid)
            assert growth < GROWTH, f"{what} has grown by {growth} bytes"

    def teardown(self) -> None:
        """End everything."""
        self._stack.close()


def test_matrix() -> None:
    """Walk, and say where a walk went wrong."""
    options = settings(
        max_examples=WALKS or IN_CI,
        stateful_step_count=STEPS,
        derandomize=not WALKS,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    FAILURES.clear()
    try:
        run_state_machine_as_test(Walk, settings=options)
    except Exception:
        if FAILURES:
            raise FAILURES[0] from None
        raise
    finally:
        for name, gaps in sorted(GAPS.items()):
            middle = sorted(gaps)[len(gaps) // 2]
            print(f"{name}: {len(gaps)} times, {middle:.2f} s, at most {max(gaps):.2f}")
