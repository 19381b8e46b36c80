# SPDX-License-Identifier: Apache-2.0
"""The VMs and the devices between them, by the status of each device.

Each device joins a master with a slave.  One VM may be the slave of several devices,
and a master as well.
"""

from collections.abc import Iterable
from typing import NamedTuple

from vhostpci_shared.units import si

from ...interfaces import FAILED, Json

GOOD, WAITS, BAD = "good", "waits", "bad"
"""Whether a device runs, waits for a VM or an agent, or has a problem."""


class Vm(NamedTuple):
    """One end of a device: a process, or its absence."""

    key: str
    """Different for each VM, and of letters, digits and "_"."""
    name: str
    pid: int | None

    @property
    def note(self) -> str:
        """What stands below the name."""
        return "not connected" if self.pid is None else f"pid {self.pid}"


class Link(NamedTuple):
    """One device."""

    name: str
    """With a word if it is confined: its slave has a part of the master's memory."""
    state: str
    kind: str
    """GOOD, WAITS or BAD."""
    master: Vm
    slave: Vm
    agent: str
    down: str
    """What the master sends; empty if it is not known."""
    up: str
    """What it receives."""


def links(statuses: Iterable[Json]) -> list[Link]:
    """Return the devices, those of one slave together."""
    found = [_link(number, status) for number, status in enumerate(statuses)]
    order = list(dict.fromkeys(one.slave.key for one in found))
    return sorted(found, key=lambda one: order.index(one.slave.key))


def vms(found: Iterable[Link]) -> list[Vm]:
    """Return each VM once."""
    return list(dict.fromkeys(vm for one in found for vm in (one.master, one.slave)))


def _link(number: int, status: Json) -> Link:
    state = status["state"]
    if state == FAILED:
        state = f"failed: {status['reason']}"
    rates = status.get("rates") or {}
    agent = status.get("agent") or {}
    runs = status["state"] == "running"
    show = runs and "bytes" not in agent.get("not_counted", ())
    return Link(
        status["name"] + (" (confined)" if status.get("confined") else ""),
        state,
        _kind(status),
        _end(status, "master", number),
        _end(status, "slave", number),
        _agent(agent) if agent.get("present") else "no agent",
        si(rates["tx_bits"], "bit/s") if show and rates else "",
        si(rates["rx_bits"], "bit/s") if show and rates else "",
    )


def _kind(status: Json) -> str:
    if status["state"] == "running":
        return GOOD
    waits = ("no ", "master's driver is not loaded", "agent is waiting")
    return WAITS if status["state"].startswith(waits) else BAD


def _end(status: Json, role: str, number: int) -> Vm:
    end = status.get(role)
    if not end:
        return Vm(f"{role}_{number}", f"no {role}", None)
    # A process of another PID namespace has PID 0 for us: it may be any.
    pid = end["pid"]
    key = f"vm_{pid}" if pid else f"{role}_{number}"
    return Vm(key, end.get("name") or f"a {role}", pid)


def _agent(agent: Json) -> str:
    words = [agent["state"], agent["binding"], agent.get("port")]
    return "agent " + ", ".join(filter(None, words))
