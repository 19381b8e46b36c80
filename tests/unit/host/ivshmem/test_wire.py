# SPDX-License-Identifier: Apache-2.0
"""What the daemon knows of a client by the name of the client's socket."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from vhostpci_host.ivshmem import wire
from vhostpci_shared import ivshmem


@contextmanager
def connection(path: Path, name: bytes | None) -> Iterator[socket.socket]:
    """Return the daemon's end of a client whose socket has this name, or none."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        if name is not None:
            client.bind(name)
        client.connect(str(path))
        yield stack.enter_context(listener.accept()[0])


@pytest.mark.parametrize(
    ("name", "is_process", "takes_kicks"),
    [
        (None, False, False),
        (b"", True, False),
        (b"\0vhostpci-guest.kick", True, False),
        (ivshmem.TAKES_KICKS + b"test_wire", True, True),
    ],
    ids=["a QEMU", "an older agent", "another name", "an agent"],
)
def test_name_says_who_the_client_is(
    tmp_path: Path, name: bytes | None, *, is_process: bool, takes_kicks: bool
) -> None:
    with connection(tmp_path / "s", name) as ours:
        assert wire.is_process(ours) is is_process
        assert wire.takes_kicks(ours) is takes_kicks


def test_client_with_a_path_takes_no_kicks(tmp_path: Path) -> None:
    name = bytes(tmp_path / "client")
    with connection(tmp_path / "s", name) as ours:
        assert not wire.takes_kicks(ours)
