# SPDX-License-Identifier: Apache-2.0
"""Who lives and who hangs, and what must be true therefore.

The model knows nothing of how the programs work.  Each method is one event; the
properties at the end say what a user may expect after it.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

NO_KEEPER, STANDBY = "none", "standby"
UNKNOWN = "?"
"""A carrier that may be either."""


class Life(Enum):
    """What may have become of a program or a machine."""

    ABSENT = auto()
    RUNS = auto()
    HANGS = auto()
    """It was sent SIGSTOP, and holds all that it has."""


class Tap(Enum):
    """What there is of the slave's TAP."""

    ABSENT = auto()
    LEFT = auto()
    """An agent has left it for the next one."""
    SERVED = auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays as it is in a whole walk."""

    keeper: str
    """The value of `--keeper`."""
    attach: bool
    packed: bool
    keep_tap: bool
    """Whether agents have `--keep-tap`."""
    grace: str
    """The value of `--carrier-grace`."""


@dataclass(slots=True)
class Model:
    """The state of the daemon, the agent and the master."""

    plan: Plan
    daemon: Life = Life.ABSENT
    keeper: bool = False
    """Whether there is a keeper that starts the daemon again."""
    device: bool = False
    """Whether the daemon serves the device."""
    agent: Life = Life.ABSENT
    seated: bool = False
    """Whether the agent is connected to the daemon; one that hangs keeps its place."""
    tap: Tap = Tap.ABSENT
    master: Life = Life.ABSENT
    linked: bool = False
    """Whether the master is connected to the daemon."""
    driver: bool = False
    used: bool = False
    """Whether an agent has worked the rings of the present driver."""
    described: bool = False
    """Whether it has described rings since it connected."""
    spare: bool = False
    """Whether the daemon's file has another device."""
    position_lost: bool = False
    """Whether nothing knows where the packed rings of the present driver stand."""
    events: list[str] = field(default_factory=list, repr=False)
    """What has happened in the walk."""

    # The daemon.

    def daemon_starts(self) -> None:
        """It serves the device of its file."""
        self.daemon, self.device = Life.RUNS, True
        self.keeper = self.plan.keeper != NO_KEEPER
        self._agent_takes_tap()

    def daemon_ends(self) -> None:
        """It ends, and has no successor."""
        self.daemon, self.device, self.keeper = Life.ABSENT, False, False
        self.linked = self.seated = False
        if self.agent is not Life.RUNS:
            self._lose_positions()

    def daemon_has_successor(self) -> None:
        """That serves what the file says, also a device that was removed."""
        self.device = True
        self._agent_takes_tap()

    def daemon_goes_on(self) -> None:
        """It was stopped, and runs again."""
        self.daemon = Life.RUNS
        self._agent_takes_tap()

    def keeper_is_killed(self) -> None:
        """The daemon goes on, and will have no successor."""
        self.keeper = False

    def device_is_removed(self) -> None:
        """An arena goes with it; a master that has other memory may come back."""
        self.device = self.linked = self.seated = False
        if self.agent is not Life.RUNS:
            self._lose_positions()

    def device_is_added(self) -> None:
        """The daemon serves it again."""
        self.device = True
        self._agent_takes_tap()

    # The agent.

    def agent_starts(self) -> None:
        """It serves the device as soon as there is one."""
        self.agent = Life.RUNS
        self._agent_takes_tap()

    def _agent_takes_tap(self) -> None:
        if self.agent is Life.RUNS and self.device and self.daemon is Life.RUNS:
            self.tap, self.seated = Tap.SERVED, True

    def agent_ends(self, *, killed: bool) -> None:
        """It ends; one that is killed leaves its TAP."""
        if self.tap is Tap.SERVED:
            kept = killed or self.plan.keep_tap
            self.tap = Tap.LEFT if kept else Tap.ABSENT
        self.agent, self.seated = Life.ABSENT, False
        if self.daemon is Life.ABSENT:
            self._lose_positions()

    def agent_goes_on(self) -> None:
        """It was stopped, and runs again."""
        self.agent = Life.RUNS
        self._agent_takes_tap()

    def _lose_positions(self) -> None:
        # Split rings have their used index, and an arena has the metadata.  Rings that
        # nothing was taken from stand at their start.
        if self.plan.packed and self.plan.attach and self.used:
            self.position_lost = True

    # The master.

    def master_is_dropped(self) -> None:
        """The daemon disconnects it, since it has no agent."""
        self.linked = False

    def master_starts(self) -> None:
        """Its firmware has connected; no driver is loaded yet."""
        self.master = Life.RUNS
        self.master_connects()

    def master_ends(self) -> None:
        """The machine is gone."""
        self.master = Life.ABSENT
        self.linked = self.driver = self.used = self.position_lost = False

    def driver_loads(self) -> None:
        """The driver begins with empty rings."""
        self.driver, self.position_lost = True, False
        self.described, self.used = True, False

    def master_connects(self) -> None:
        """It comes back; a driver goes on."""
        self.linked, self.described = True, self.driver

    def driver_unloads(self) -> None:
        """The rings are given back."""
        self.driver = self.used = self.position_lost = False

    def rings_were_seen(self) -> None:
        """Note whether an agent works the rings now."""
        self.used |= self.rings_run

    # What must be true.

    @property
    def served(self) -> bool:
        """Whether the daemon answers for the device."""
        return self.daemon is Life.RUNS and self.device

    @property
    def rings_run(self) -> bool:
        """Whether the agent works the rings."""
        ready = self.served and self.linked and self.driver and not self.position_lost
        return ready and self.agent is Life.RUNS

    @property
    def flows(self) -> bool:
        """Whether packets cross, both ways."""
        return self.rings_run and self.master is Life.RUNS

    @property
    def may_be_dropped(self) -> bool:
        """Whether the master's card may lose its carrier, and with it the link.

        It does if the daemon has seen that the master connects again; that is so after
        some time only, so nothing says when.
        """
        no_agent = self.agent is not Life.RUNS
        return no_agent and self.plan.grace != "off" and not self.plan.packed

    @property
    def must_link(self) -> bool:
        """Whether a master that is not connected is taken."""
        return self.can_link and (self.agent is Life.RUNS or not self.may_be_dropped)

    @property
    def carrier(self) -> str | None:
        """What the slave's kernel sees of the TAP; None without one."""
        if self.tap is Tap.ABSENT:
            return None
        if self.agent is Life.HANGS or self.master is Life.HANGS:
            return UNKNOWN
        return "UP" if self.rings_run else "NO-CARRIER"

    @property
    def can_link(self) -> bool:
        """Whether a master that is not connected connects."""
        return self.served and self.master is Life.RUNS

    @property
    def situation(self) -> tuple[object, ...]:
        """Return all that the number of a program's descriptors may depend on."""
        return (
            *(self.plan, self.daemon, self.keeper, self.device, self.spare),
            *(self.agent, self.tap, self.master, self.linked, self.driver),
            *(self.described, self.seated, self.position_lost),
        )
