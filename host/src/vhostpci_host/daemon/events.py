# SPDX-License-Identifier: Apache-2.0
"""What has changed of a device, as events for programs (`vhostpci-host monitor`).

An event is the difference between two views of a device.  So each event comes in pairs
that fit (`master-connected`, `master-disconnected`), however the daemon got there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..device.agent_view import AgentView
from ..device.device import Device
from ..device.status import confined, state
from ..interfaces import FAILED, Json
from .entry import Entry

_WHAT_IT_IS = (
    *("state", "reason", "confined"),
    *("master_pid", "slave_pid", "agent", "rings"),
)

EVENTS = {
    "daemon": ("pid", "version"),
    "present": _WHAT_IT_IS,
    "listening": ("devices",),
    "device-added": _WHAT_IT_IS,
    "device-removed": (),
    "device-failed": ("reason",),
    "master-connected": ("pid",),
    "master-disconnected": ("pid",),
    "slave-connected": ("pid",),
    "slave-disconnected": ("pid",),
    "agent": ("agent", "before", "message"),
    "rings-started": ("rings",),
    "rings-stopped": ("rings",),
    "carrier-off": ("reason",),
    "carrier-on": (),
    "mismatch": ("reason",),
    "mismatch-over": (),
    "state": ("state", "before"),
    "daemon-ends": (),
}
"""Each event's name, and the names of its values; docs/events.md says what they mean.

Each also has `time` and `event`, and `device` if it is about one.
"""

Event = tuple[str, Json]
"""A name of `EVENTS`, and its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One device as a subscriber knows it."""

    state: str
    reason: str = ""
    """Why it failed."""
    confined: Json | None = None
    """How much of the master's memory the slave has; None: all of it."""
    master: int | None = None
    slave: int | None = None
    agent: str = "none"
    message: str = ""
    """Why the agent does not serve the device."""
    running: tuple[str, ...] = ()
    carrier_off: str = ""
    """Why the master's card has no carrier; empty if it has one."""
    mismatch: str = ""

    def values(self) -> Json:
        """Return what `present` and `device-added` say."""
        return {
            "state": self.state,
            "reason": self.reason or None,
            "confined": self.confined,
            "master_pid": self.master,
            "slave_pid": self.slave,
            "agent": self.agent,
            "rings": list(self.running),
        }


NOTHING = View(state="")
"""A device of which nothing is known."""


def view(entry: Entry) -> View | None:
    """Return a device as it is now; None while it is still being added."""
    server = entry.server
    if server is None:
        # A device that is being added fails by no event: who adds it is told.
        if entry.arriving:
            return None
        return View(state=FAILED, reason=entry.failure, confined=confined(entry.config))
    device, why_off = server.device, server.carrier.why_off
    return View(
        state="leaving" if entry.leaving else state(device, why_off=why_off),
        confined=confined(entry.config),
        master=device.master.pid if device.master else None,
        slave=device.slave.port.pid if device.slave else None,
        agent=agent(device.agent),
        message=device.agent.entry.message,
        running=_running(device),
        carrier_off=why_off,
        mismatch=device.mismatch,
    )


def agent(agent: AgentView) -> str:
    """Return what an agent does; "none" if there is none."""
    if agent.silent:
        return "silent"
    if agent.follows or agent.failed:
        return agent.entry.state.name.lower()
    return "none"


def _running(device: Device) -> tuple[str, ...]:
    return tuple(
        f"{'tx' if lease.index % 2 else 'rx'}{lease.index // 2}"
        for lease in device.leases
        if lease.running
    )


def differences(before: View, after: View) -> Iterator[Event]:
    """Yield the events between two views: first what ends, then what begins."""
    stopped = [ring for ring in before.running if ring not in after.running]
    if stopped:
        yield "rings-stopped", {"rings": stopped}
    yield from _gone("master", before.master, after.master)
    yield from _gone("slave", before.slave, after.slave)
    yield from _come("slave", before.slave, after.slave)
    yield from _come("master", before.master, after.master)
    if before.agent != after.agent:
        words = {"agent": after.agent, "before": before.agent}
        yield "agent", {**words, "message": after.message or None}
    started = [ring for ring in after.running if ring not in before.running]
    if started:
        yield "rings-started", {"rings": started}
    yield from _carrier_and_features(before, after)
    if after.state == FAILED != before.state:
        yield "device-failed", {"reason": after.reason}
    if before.state != after.state:
        yield "state", {"state": after.state, "before": before.state}


def _carrier_and_features(before: View, after: View) -> Iterator[Event]:
    if bool(before.carrier_off) != bool(after.carrier_off):
        if after.carrier_off:
            yield "carrier-off", {"reason": after.carrier_off}
        else:
            yield "carrier-on", {}
    if before.mismatch != after.mismatch:
        if after.mismatch:
            yield "mismatch", {"reason": after.mismatch}
        else:
            yield "mismatch-over", {}


def _gone(role: str, before: int | None, after: int | None) -> Iterator[Event]:
    if before is not None and before != after:
        yield f"{role}-disconnected", {"pid": before}


def _come(role: str, before: int | None, after: int | None) -> Iterator[Event]:
    if after is not None and before != after:
        yield f"{role}-connected", {"pid": after}
