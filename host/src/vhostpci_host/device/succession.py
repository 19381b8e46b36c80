# SPDX-License-Identifier: Apache-2.0
"""What a device leaves to its successor in the next daemon, and how that goes on.

`capture` makes the state that is kept.  The successor makes a `Device` with it, then
`restore_master` and `restore_slave` give it the two connections, without a word to the
other ends, and `Device.go_on` serves again.
"""

from collections.abc import Mapping

from vhostpci_shared import metadata as md

from ..config.device import describe
from ..fds import Notifier
from ..interfaces import MasterPort
from ..ivshmem.connection import SlaveConnection
from ..ivshmem.kept import ConnectionState, restore_vectors
from ..ivshmem.peers import Outgoing
from ..ivshmem.slave import SlavePort
from ..keeper.slots import StateError
from ..keeper.store import Keep
from ..memory.kept import ArenaState, AttachedState
from ..vhost_user.kept import MasterState, restore_setup
from .device import Device
from .kept import DeviceLeft, DeviceState, DroppedState, ListenerState


def capture(
    device: Device,
    keep: Keep,
    *,
    added: Mapping[str, str] | None,
    listeners: tuple[ListenerState, ...],
    master: MasterState | None,
    dropped: DroppedState | None,
    slave: ConnectionState | None,
) -> DeviceState:
    """Return what a successor needs to go on with a device.

    Args:
        device: as it is now.
        keep: keeps descriptors.
        added: the device's options, if it is in no file.
        listeners: its sockets.
        master: the front-end, None without one.
        dropped: the front-end that may not come back before an agent serves it.
        slave: the slave's connection, None without one.
    """
    store, ours = device.store.capture(keep), device.slave
    return DeviceState(
        name=device.config.name,
        config=describe(device.config),
        added=None if added is None else _flat(added),
        doorbell=keep(device.doorbell),
        arena=store if isinstance(store, ArenaState) else None,
        attached=store if isinstance(store, AttachedState) else None,
        listeners=listeners,
        publisher=device.publisher.capture(),
        windows=device.windows.capture(keep),
        agent=device.agent.capture(),
        master=master if device.master is not None else None,
        dropped=dropped,
        slave=ours.capture(slave, keep) if ours and slave else None,
    )


def _flat(texts: Mapping[str, str]) -> tuple[str, ...]:
    """Return each name with its text behind it."""
    return tuple(word for pair in texts.items() for word in pair)


def restore_master(device: Device, port: MasterPort, left: DeviceLeft) -> None:
    """Give the device the front-end of a daemon before us.

    Raises:
        StateError: what it has set up does not fit the device.
    """
    assert left.state.master is not None, "no front-end was left"
    state = left.state.master.setup
    known = bool(state.regions)
    device.master, device.backend = port, device.new_backend(port, known=known)
    restore_setup(device.backend.setup, state, left.kept, device.store.check)


def restore_slave(
    device: Device, port: SlavePort, left: DeviceLeft, now: float
) -> None:
    """Give the device the slave of a daemon before us; after its front-end.

    Args:
        device: is given it.
        port: the slave's connection.
        left: what that daemon has left.
        now: the time of the loop.

    Raises:
        StateError: it does not fit together.
    """
    state = left.state.slave
    assert state is not None, "no slave was left"
    vectors = restore_vectors(state, device.config.vectors, left.kept)
    device.slave = device.new_slave(port, vectors)
    device.slave.restore(state, _notifiers(device, left), left.kept)
    device.agent.forget(connected=True)
    device.agent.restore(left.state.agent, now)


def _notifiers(
    device: Device, left: DeviceLeft
) -> list[tuple[str | None, Notifier | None]]:
    """Return the name and the notifier of each ring's call, then of each kick."""
    setup, master = device.setup, left.state.master
    if setup is None or master is None:
        return [(None, None)] * (2 * len(device.leases))
    rings = list(zip(master.setup.rings, setup.rings, strict=True))
    calls = [(state.call, ring.call) for state, ring in rings]
    return [*calls, *((state.kick, ring.kick) for state, ring in rings)]


def settle_doubt(device: Device, slave: SlaveConnection, doubtful: Outgoing) -> None:
    """Go on although the slave may have been sent a message or not.

    Raises:
        StateError: that is a message of the handshake.
    """
    if doubtful.fd is not None:
        doubtful.fd.close()
    assert device.slave is not None, "no slave"
    if doubtful.message == device.slave.peers.call_peer:
        # QEMU knows a vector by its place only: a peer that lacks one, or has one
        # twice, is of no use.
        peer = device.slave.doubt(device.publisher.generation)
        assert peer is not None, "a call peer"
        slave.forget_peer(peer)
    elif doubtful.fd is not None or doubtful.message < md.FIRST_CALL_PEER:
        raise StateError("nothing says how far the slave's handshake has come")
    # An old peer that the slave may drop or keep costs nothing; to drop it twice
    # would end a QEMU.
