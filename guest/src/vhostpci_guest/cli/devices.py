# SPDX-License-Identifier: Apache-2.0
"""What `vhostpci-guest devices` prints of a device.  Nothing is changed."""

from collections.abc import Iterable, Iterator
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.terminal import Styled, Terminal
from vhostpci_shared.units import confined, size

from ..pci.binding_names import signals
from ..pci.bindings import BINDINGS, HIGHER, Binding, is_low
from ..pci.position import find_position
from ..pci.sysfs_device import PciDevice
from ..status_socket import Status


def describe(pci: PciDevice, links: Status) -> dict[str, Any]:
    """Return the description of a device, as `devices --json` prints it.

    Args:
        pci: the device.
        links: what the running agents serve.
    """
    served = next((one for one in links if one["device"] == pci.address), {})
    agent = served.get("pid")
    window_of = {
        link["device"]: window["id"]
        for link in links
        for window in link["windows"]
        if window["device"] == pci.address
    }
    # Asked once: each answer may run modprobe (without loading anything).
    whys = {name: way.why_not(pci) for name, way in BINDINGS.items()}
    return {
        "address": pci.address,
        "driver": pci.driver,
        "iv_position": _position(pci, agent, window_of.values()),
        "window_of": list(window_of),
        "window": pci.bar_size(2),
        "vectors": pci.msix_vectors,
        "agent": agent,
        "confined": served.get("confined"),
        "taken": pci.why_taken(),
        "bindings": {
            name: {
                "interrupts": way.interrupts,
                "cached": way.caches(pci),
                "caching": way.caching(pci),
                "why_not": whys[name],
            }
            for name, way in BINDINGS.items()
        },
        "better": _better(pci, [name for name, why in whys.items() if why is None]),
    }


def _position(pci: PciDevice, agent: int | None, windows: Iterable[int]) -> int | None:
    """Return the IVPosition; of what an agent has, by what the agent says."""
    # An agent's device is not touched: uio_vhostpci lets one process open its node, and
    # the agent's status says what the device is.
    if agent is not None:
        return md.SLAVE_ID
    known = next(iter(windows), None)
    return find_position(pci) if known is None else known


def _better(pci: PciDevice, possible: list[str]) -> str | None:
    """Return a binding that is better than those possible now, and what it gives."""
    if not possible:
        return None
    best = BINDINGS[possible[0]]  # the table has the best first
    # Such a binding caches the window, unless the firmware has put BAR 2 too low.
    if best.cached:
        return f"cached, with BAR 2 above 4 GiB: {HIGHER}" if is_low(pci) else None
    for name, way in BINDINGS.items():
        gains = _gains(way, best, pci)
        if gains and name not in possible:
            return f"{name}, for {' and '.join(gains)}: its line has what it takes"
    return None


def _gains(way: Binding, best: Binding, pci: PciDevice) -> list[str]:
    """Return what one way gives that the other does not."""
    gains = []
    if way.interrupts and not best.interrupts:
        gains.append("interrupts")
    if way.caches(pci) and not best.caches(pci):
        gains.append("a cached window")
    return gains


def lines(device: dict[str, Any], terminal: Terminal) -> Iterator[str]:
    """Yield the lines for people that say what `describe` returned."""
    known = [size(device["window"])]
    if device["vectors"] is not None:
        known.append(f"{device['vectors']} vectors")
    if device["iv_position"] is not None:
        known.append(f"IVPosition {device['iv_position']}")
    known.append(f"driver {device['driver'] or 'none'}")
    head = f"{device['address']}  {', '.join(known)}"
    yield from terminal.wrapped(Styled(head, "name"))
    for note in _notes(device):
        yield from terminal.wrapped(note, indent=2)
    yield from terminal.table(_ways(device["bindings"]), indent=2)
    if device["better"] is not None:
        yield from terminal.wrapped(f"better: {device['better']}", indent=2)


def _notes(device: dict[str, Any]) -> Iterator[str]:
    # The window may belong to an agent that we may not ask, or to none yet.
    if (device["iv_position"] or 0) >= md.FIRST_WINDOW:
        others = ", ".join(device["window_of"]) or "another device"
        yield f"window {device['iv_position']} of {others}"
    if device["agent"] is not None:
        text = f"served by vhostpci-guest (pid {device['agent']})"
        yield Styled(text, "good")
        if device.get("confined"):
            yield f"confined: {confined(device['confined'])}"
    elif device["taken"] is not None:
        yield Styled(device["taken"], "warn")


def _ways(ways: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row for each way to bind the device."""
    for name, way in ways.items():
        why = way["why_not"]
        possible = Styled("possible", "good") if why is None else Styled(why, "dim")
        yield [name, signals(way["interrupts"]), way["caching"], possible]
