# SPDX-License-Identifier: Apache-2.0
"""What the checks of `vhostpci-guest doctor` may look at, and what they share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.findings import Seen, check_of_each
from vhostpci_shared.machine import Machine

Described = dict[str, Any]
"""One device, as `vhostpci-guest devices -j` has it."""
Link = dict[str, Any]
"""One device that an agent serves, as `vhostpci-guest status -j` has it."""
PCI = "/sys/bus/pci/devices"


@dataclass(frozen=True, slots=True)
class Peek:
    """The start of the metadata of a device that no agent serves, read twice.

    The daemon raises its heartbeat between the two.
    """

    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Slave:
    """The machine, its devices, and what its agents say."""

    machine: Machine
    version: str
    """Of this program."""
    program: str
    """Its path."""
    devices: tuple[Described, ...] = ()
    links: tuple[Link, ...] = ()
    problems: tuple[str, ...] = ()
    """Of each agent that does not answer: why."""
    forbidden: str = ""
    """Why this user may not ask the agents; empty if there is no reason."""
    peek: Callable[[str], Peek | None] = lambda _: None
    """Reads a device that no agent serves; None where that would disturb it.

    Raises OSError where the kernel does not allow it.
    """

    @property
    def unserved(self) -> list[Described]:
        """The devices with doorbells that no agent serves; windows are none."""
        served = {link["device"] for link in self.links}
        return [
            one
            for one in self.devices
            if one["address"] not in served
            and not one["window_of"]
            and (one["iv_position"] or 0) < md.FIRST_WINDOW
        ]

    def link(self, device: Described) -> Link | None:
        """Return what an agent says of a device that it serves."""
        found = (link for link in self.links if link["device"] == device["address"])
        return next(found, None)


def each_device(
    look: Callable[[Slave, Described], Iterable[Seen]],
) -> Callable[[Slave], Iterator[Seen]]:
    """Return the check that looks at each PCI function."""
    return check_of_each(
        look,
        lambda slave: slave.devices,
        lambda device: str(device["address"]),
        lambda _slave: "there is no ivshmem device",
    )


def each_link(
    look: Callable[[Slave, Link], Iterable[Seen]],
) -> Callable[[Slave], Iterator[Seen]]:
    """Return the check that looks at each device that an agent serves."""
    return check_of_each(
        look,
        lambda slave: slave.links,
        lambda link: str(link["name"] or link["device"]),
        lambda slave: slave.forbidden or "no agent serves a device",
    )


def possible(device: Described) -> list[str]:
    """Return the bindings that could work."""
    found = device["bindings"].items()
    return [name for name, one in found if one["why_not"] is None]


def has_interrupts(device: Described) -> bool:
    """Whether a binding with interrupts could work."""
    return any(device["bindings"][name]["interrupts"] for name in possible(device))
