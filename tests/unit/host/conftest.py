# SPDX-License-Identifier: Apache-2.0
"""A back-end and a device without sockets, in which time passes only on demand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frontend import Direct, FrontEnd, region
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB, Ram
from tests.unit.host.scene import MakeFile, Scene
from vhostpci_host.memory import limited_read
from vhostpci_host.vhost_user.backend import Backend


@pytest.fixture(autouse=True)
def full_stock() -> None:
    """On a busy machine the slow reads of earlier tests may have used it up."""
    limited_read.stock.refill()


@pytest.fixture
def ram() -> Iterator[Ram]:
    ram = Ram()
    yield ram
    ram.close()


@pytest.fixture
def backend(ram: Ram) -> Iterator[Backend]:
    backend = Backend(1, ram)
    yield backend
    backend.close()


@pytest.fixture
def qemu(ram: Ram, backend: Backend) -> Iterator[FrontEnd]:
    """A stock QEMU that has just connected."""
    with FrontEnd(Direct(backend), [(region(ram.size), ram.fd)]) as front_end:
        front_end.connect()
        yield front_end


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A device of one queue pair, with neither a front-end nor a slave yet."""
    with Scene(tmp_path, ManualLoop(), memory=16 * MIB) as scene:
        yield scene


@pytest.fixture
def file() -> Iterator[MakeFile]:
    """A maker of memory files."""
    made = []

    def make(size: int = 16 * MIB) -> int:
        made.append(os.memfd_create("memory"))
        os.ftruncate(made[-1], size)
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)
