# SPDX-License-Identifier: Apache-2.0
"""What a daemon before us has left: one state for each device, and what they name."""

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vhostpci_shared.listening_socket import is_bound_for

from .. import sockets
from ..config.device import ConfigError, DeviceConfig, Mode, describe
from ..device.kept import DeviceLeft, DeviceState
from ..fds import Fd
from ..keeper.codec import decode
from ..keeper.shelf import STATE, Left
from ..keeper.slots import Mark, StateError, StateFile
from ..keeper.store import CONTROL, DESCRIPTOR, FILE, DescriptorStore, names_of
from ..memory.arena import Arena
from ..memory.attach import AttachedMemory, WindowIds
from .listeners import LeftSocket

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What a daemon before us has left of one device."""

    device: DeviceLeft
    file: StateFile
    in_pieces: bool
    """Whether it had read a part of a message of the front-end's."""
    names: frozenset[str]
    """Under which it was left: all that its state may name, and the state's own."""

    @property
    def added(self) -> Mapping[str, str] | None:
        """The options of a device that was added; None for one of a file."""
        texts = self.device.state.added
        if texts is None:
            return None
        return dict(zip(texts[::2], texts[1::2], strict=False))

    def check(self, config: DeviceConfig) -> None:
        """Check that the device is configured as it was.

        Raises:
            StateError: it is not.
        """
        was, now = set(self.device.state.config), set(describe(config))
        if was != now:
            raise StateError(f"its configuration has changed: {sorted(was ^ now)}")

    def plugged_as(self) -> DeviceConfig | None:
        """Return as what device its windows were plugged into a VM; None if not."""
        state = self.device.state
        texts = dict(text.split("=", 1) for text in state.config if "=" in text)
        qmp, domain = texts.get("slave_qmp"), texts.get("slave_libvirt")
        if qmp is None and domain is None:
            return None
        try:
            return DeviceConfig(
                name=state.name,
                mode=Mode.ATTACH,
                slave_qmp=None if qmp is None else Path(qmp),
                slave_libvirt=domain,
            )
        except ConfigError as error:
            log.warning("%s: its windows are not unplugged: %s", state.name, error)
            return None

    def store(self, config: DeviceConfig, ids: WindowIds) -> Arena | AttachedMemory:
        """Return the device's memory.

        Raises:
            StateError: it is not what it was.
            HostError: it cannot be mapped.
        """
        state, kept = self.device.state, self.device.kept
        if state.arena is not None:
            return Arena.restore_left(config, state.arena, kept)
        if state.attached is None:
            raise StateError("it has no memory")
        return AttachedMemory.restore_left(config, ids, state.attached, kept)

    def listeners(self) -> dict[Path, LeftSocket]:
        """Return the listening sockets by their paths, which are ours to close.

        Raises:
            StateError: one is missing, is bound elsewhere, or is named twice.
        """
        found: dict[Path, LeftSocket] = {}
        try:
            for one in self.device.state.listeners:
                if Path(one.path) in found:
                    raise StateError(f"two sockets at {one.path}")
                server = self.device.kept.socket(one.socket, listening=True)
                found[Path(one.path)] = LeftSocket(server, (one.device, one.inode))
                _check_bound(server, one.path)
        except StateError:
            for left in found.values():
                left.server.close()
            raise
        return found


def _check_bound(server: socket.socket, path: str) -> None:
    if not is_bound_for(Path(path), server.getsockname()):
        raise StateError(f"a socket is bound to {server.getsockname()!r}, not {path}")


def unnamed_socket(left: dict[str, Fd], path: Path) -> LeftSocket | None:
    """Return the listening socket that is at `path`, if it was left without a state.

    A daemon that is killed between the two has kept it, and no state names it.
    """
    return _socket_at(left, path, DESCRIPTOR)


def control_socket(left: dict[str, Fd], path: Path) -> LeftSocket | None:
    """Return the daemon's control socket that was left, if it is at `path`."""
    return _socket_at(left, path, CONTROL)


def _socket_at(left: dict[str, Fd], path: Path, kind: str) -> LeftSocket | None:
    kept, inode = Left(left), sockets.inode(path)
    for name in names_of(left, kind) if inode is not None else ():
        try:
            server = kept.socket(name, listening=True)
        except StateError:
            continue
        if is_bound_for(path, server.getsockname()) and inode is not None:
            return LeftSocket(server, inode)
        server.close()
    return None


def find(store: DescriptorStore) -> dict[str, LeftBehind]:
    """Return what was left of each device, by its name; report what cannot be read."""
    kept = Left(store.left)
    found: dict[str, LeftBehind] = {}
    for name in names_of(store.left, STATE):
        try:
            one = _read(kept, name)
        except StateError as error:
            log.warning("what an earlier daemon has left cannot be used: %s", error)
            continue
        found[one.device.state.name] = one
    return found


def _read(kept: Left, name: str) -> LeftBehind:
    fd = kept.fd(name)
    try:
        file = StateFile.left(fd)
    except BaseException:
        fd.close()
        raise
    try:
        text = file.read()
        state = decode(DeviceState, text)
        in_pieces = bool(file.mark(Mark.IN_PIECES))
    except BaseException:
        file.close()
        raise
    # All that is between two quotes: more than its names, perhaps, but all of them.
    names = frozenset({name, *text.decode().split('"')})
    return LeftBehind(DeviceLeft(state, kept), file, in_pieces, names)


def file_text(store: DescriptorStore) -> bytes | None:
    """Return what the configuration file said when a daemon before us read it last."""
    names = names_of(store.left, FILE)
    if not names:
        return None
    # A daemon that was killed between the two has left an old one as well.
    newest = max(names, key=lambda name: int(name[1:], 36))
    number = store.left[newest].fileno()
    return os.pread(number, os.fstat(number).st_size, 0)


def remove_left_windows(config: DeviceConfig) -> None:
    """Remove the windows' sockets of a daemon that was killed.

    Its windows had other numbers than ours, so nothing would replace them.
    """
    ivshmem = config.ivshmem
    for path in ivshmem.parent.glob(f"{ivshmem.name}.*"):
        if path.name.removeprefix(f"{ivshmem.name}.").isdecimal():
            sockets.remove_unused(path)
