# SPDX-License-Identifier: Apache-2.0
"""What a device is doing, as JSON (`cli/print_status.py` makes text of it)."""

import os
from collections.abc import Callable

from vhostpci_shared import virtio
from vhostpci_shared.about import About, AboutFlag
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from .. import __version__
from ..config.device import DeviceConfig
from ..fds import file_number
from ..features import CONFINED_ONLY
from ..interfaces import FAILED, Json
from ..vhost_user.negotiation import offered
from ..vhost_user.vring import Vring
from .device import Device

_COUNT_NAMES = {
    "PACKETS": "packets",
    "OCTETS": "bytes",
    "DROPS": "drops",
    "KICKS": "kicks",
    "CALLS": "calls",
}
"""What the status calls the counts of a ring that an agent may not have."""


REFUSED = "master's memory is refused"
"""The state of a device whose master shows memory that it may not show."""


def describe(
    device: Device,
    connect_problem: str = "",
    carrier: Json | None = None,
    since: Callable[[str], float | None] = lambda state: None,
) -> Json:
    """Return everything that is known of `device`, as `status -j` prints it.

    Args:
        device: this device.
        connect_problem: why we cannot connect to a front-end that listens.
        carrier: what is known of the carrier of the master's card.
        since: says since when the device is in a state, in seconds since 1970.
    """
    found = state(device, why_off=carrier["why_off"] or "" if carrier else "")
    config, plugger = device.config, device.windows.plugger
    return {
        "name": config.name,
        "state": found,
        "state_since": since(found),
        "daemon": {"pid": os.getpid(), "version": __version__},
        "mode": config.mode.value,
        "memory": device.store.describe(),
        "confined": confined(config),
        "windows": _windows(device),
        "plugging": plugger.status() if plugger else None,
        "queue_pairs": config.queue_pairs,
        "vectors": config.vectors,
        **_sockets(config, connect_problem),
        "carrier": carrier,
        "features": _features(device),
        "generation": device.publisher.generation,
        "master": _master(device),
        "slave": _slave(device),
        "slave_problem": device.slave_problem or None,
        "agent": _agent(device),
        "rates": device.traffic.rates(),
        "cleared": device.cleared,
        "rings": [_ring(device, index) for index in range(config.rings)],
    }


def _sockets(config: DeviceConfig, connect_problem: str) -> Json:
    return {
        "sockets": {
            "vhost_user": str(config.vhost_user),
            "ivshmem": str(config.ivshmem),
            "control": str(config.control),
        },
        "connects": config.connect is not None,
        "connect_problem": connect_problem or None,
    }


def describe_failed(config: DeviceConfig, reason: str) -> Json:
    """Return what is known of a device that failed for `reason`."""
    return {
        "name": config.name,
        "mode": config.mode.value,
        "state": FAILED,
        "reason": reason,
    }


def row(
    config: DeviceConfig,
    device: Device | None,
    reason: str,
    *,
    why_off: str = "",
) -> Json:
    """Return a device's row of `list -j`; without `device` it failed for `reason`."""
    master = device.master if device else None
    slave = device.slave if device else None
    return {
        "name": config.name,
        "mode": config.mode.value,
        "state": state(device, why_off=why_off) if device else FAILED,
        "reason": reason or None,
        "confined": confined(config),
        "features": _names(config.features),
        "master_pid": master.pid if master else None,
        "slave_pid": slave.port.pid if slave else None,
    }


def state(device: Device, *, why_off: str = "") -> str:
    """Return the first thing that keeps the device from running, or "running".

    Args:
        device: this device.
        why_off: why the master's card has no carrier; empty if it has one.
    """
    if device.backend is None:
        return f"{why_off}: the master has no carrier" if why_off else "no master"
    if device.backend.waiting:
        return "stopping"
    if device.master is not None and device.master.hangs:
        return "front-end hangs"
    if device.backend.setup.memoryless:
        return "master's memory is not shared"
    if not any(ring.running for ring in device.leases):
        if device.backend.setup.memory_problem:
            return REFUSED
        if device.backend.setup.unservable:
            return "master's rings cannot be served"
        return "master's driver is not loaded"
    if device.slave is None:
        return "slave must be plugged again" if device.slave_problem else "no slave"
    if device.agent.silent:
        return "agent is silent"
    # The entry of an agent that died before this slave came may say READY as well.
    return "running" if device.agent.present else device.agent.idle or "no agent"


def confined(config: DeviceConfig) -> Json | None:
    """Return how much of the master's memory the slave has; None: all of it."""
    if config.confined is None:
        return None
    # The front-end does not tell how much memory the master has.
    return {
        "shared": config.shared,
        "memory": config.memory or None,
        "pool": config.confined,
    }


def _windows(device: Device) -> list[Json]:
    """Return the windows with the master's memory; window 0 is not among them."""
    return [
        {
            "window": number,
            "size": file.size,
            "file": file_number(file.file),
            "socket": str(device.config.window(number)),
            "connected": device.windows.connected(number),
        }
        for number, file in sorted(device.store.files.items())
    ]


def _features(device: Device) -> Json:
    """Return what the next front-end is offered, and why it is not more."""
    config = device.config
    ours = offered(config.queue_pairs, confined=config.confined is not None)
    limit = device.offer.limit | CONFINED_ONLY
    return {
        "offered": virtio.names(ours & limit),
        "withheld": virtio.names(ours & ~limit),
        "option": _names(config.features),
        "mismatch": device.mismatch or None,
    }


def _master(device: Device) -> Json | None:
    setup = device.setup
    if setup is None or device.master is None:
        return None
    return {
        "pid": device.master.pid,
        "features": virtio.names(setup.features),
        "protocol_features": virtio.names(setup.protocol_features),
        "mtu": setup.mtu,
        "problem": device.master.hangs or setup.problem or None,
        "regions": [
            {
                "guest_addr": placed.region.guest_addr,
                "size": placed.region.size,
                "window": placed.window,
                "offset": placed.offset,
            }
            for placed in setup.memory.regions
        ],
    }


def _slave(device: Device) -> Json | None:
    slave = device.slave
    if slave is None:
        return None
    return {
        "pid": slave.port.pid,
        "call_peer": slave.peers.call_peer,
        "call_peers_used": slave.peers.used,
    }


def _agent(device: Device) -> Json:
    entry, about = device.agent.entry, device.store.metadata.about()
    if about.instance != entry.instance:
        about = About()  # another agent's, or one of an earlier release
    return {
        "present": device.agent.follows,
        "state": entry.state.name.lower(),
        "binding": entry.binding,
        "data_plane": entry.data_plane,
        "offers": _names(device.agent.offers),
        "vectors": entry.vectors,
        "flags": virtio.names(entry.flags),
        "generation": entry.generation,
        "message": entry.message,
        "instance": entry.instance,
        "version": about.version or None,
        "port": about.port or None,
        "interrupts": AboutFlag.INTERRUPTS in about.flags if about.instance else None,
        "slow_window": AboutFlag.SLOW in about.flags if about.instance else None,
        "not_counted": [_COUNT_NAMES[one] for one in virtio.names(about.uncounted)],
        "heard": device.agent.heard,
    }


def _names(features: int | None) -> list[str] | None:
    return None if features is None else virtio.names(Feature(features))


def _ring(device: Device, index: int) -> Json:
    lease = device.leases[index]
    setup = device.setup
    vring = setup.rings[index] if setup else None
    return {
        "index": index,
        "queue": f"{'tx' if index % 2 else 'rx'}{index // 2}",
        "state": lease.state.value,
        "size": vring.size if vring else 0,
        "enabled": bool(setup and setup.enabled(index)),
        "base": vring.base if vring else 0,
        "used_index": setup.used_index(index) if setup else 0,
        "fill": setup.fill(index) if setup else None,
        "format": "packed" if vring and vring.packed else "split",
        "problem": _problem(vring) if vring else "",
        "session": lease.session,
        "kicks_relayed": lease.relayed(),
        "calls_relayed": device.slave.calls_relayed(index) if device.slave else 0,
        "kick_direct": bool(
            device.slave and device.slave.has_kick(index, vring.kick if vring else None)
        ),
        "agent": _agent_ring(device, index),
    }


def _problem(vring: Vring) -> str:
    """Return why a ring cannot run; empty if it can."""
    return "nothing says where it stands" if vring.lost else vring.problem


def _agent_ring(device: Device, index: int) -> Json | None:
    """Return what the agent says of the ring; None if it says what cannot be."""
    try:
        said = device.store.metadata.agent_ring(index)
    except ProtocolError:
        return None
    return {
        "state": said.state.name.lower(),
        "current": said.session == device.leases[index].session,
        "index": said.index,
        "packets": said.packets,
        "bytes": said.octets,
        "drops": said.drops,
        "kicks": said.kicks,
        "calls": said.calls,
    }
