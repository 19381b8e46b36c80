# SPDX-License-Identifier: Apache-2.0
"""The directory of a device's sockets is one in which no other user replaces them."""

import socket
from pathlib import Path

import pytest

from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.daemon.common import Common
from vhostpci_host.daemon.directories import Directories
from vhostpci_host.daemon.server import Server
from vhostpci_host.errors import HostError
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.memory.attach import WindowIds


def no_control(_: socket.socket) -> None:
    """Answer nothing: no test asks."""


def test_socket_path_in_a_directory_that_everyone_may_write_is_refused(
    tmp_path: Path,
) -> None:
    """Another user could put a socket there, and be given the master's memory."""
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    config = DeviceConfig(
        name="dev",
        memory=16 * MIB,
        run_dir=tmp_path / "run",
        memory_dir=tmp_path / "memory",
        socket_path=public / "socket",
    )
    loop = ManualLoop()
    common = Common(
        loop,  # type: ignore[arg-type]
        WindowIds(256),
        Linger(loop),
        Directories(loop.time),
        no_control,
    )
    with pytest.raises(HostError, match="public has mode 0777"):
        Server(common, config, failed=print, ended=print)
    assert not list(public.iterdir())
    assert not list(config.run_dir.iterdir())
    assert not list(config.memory_dir.iterdir())
