# SPDX-License-Identifier: Apache-2.0
"""What the agent is shown, by the publisher alone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frontend import region
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.device.publisher import Publisher
from vhostpci_host.fds import Fd
from vhostpci_host.memory.attach import AttachedMemory, WindowIds
from vhostpci_host.vhost_user.backend import Answer, Backend
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import DeviceFlag
from vhostpci_shared.vhost_user import Request

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AttachedMemory]:
    config = DeviceConfig(name="dev", mode=Mode.ATTACH, memory=0, run_dir=tmp_path)
    store = AttachedMemory(config, WindowIds(256))
    yield store
    store.close()


@pytest.fixture
def publisher(store: AttachedMemory, tmp_path: Path) -> Publisher:
    config = DeviceConfig(name="dev", mode=Mode.ATTACH, memory=0, run_dir=tmp_path)
    return Publisher(config, store.metadata, instance=7)


@pytest.fixture
def backend(store: AttachedMemory) -> Iterator[Backend]:
    """A front-end that has named one region, in window 256."""
    backend = Backend(1, store.windows(0, lambda: True))
    memory = Fd(os.memfd_create("master"))
    os.ftruncate(memory.fileno(), MIB)
    table = vu.MemTable((region(MIB),))
    assert isinstance(
        backend.receive(Message.of(Request.SET_MEM_TABLE, table, memory)), Answer
    )
    yield backend
    backend.close()


def snapshot(store: AttachedMemory) -> md.Snapshot:
    found = store.metadata.snapshot()
    assert found is not None
    return found


def test_region_is_published_once_its_window_can_be_opened(
    publisher: Publisher, backend: Backend, store: AttachedMemory
) -> None:
    publisher.publish(backend.setup, None, frozenset(), slave=True)
    assert snapshot(store).regions == ()
    publisher.publish(backend.setup, None, frozenset({256}), slave=True)
    assert [r.window for r in snapshot(store).regions] == [256]


def test_nothing_new_is_not_published_again(
    publisher: Publisher, store: AttachedMemory
) -> None:
    assert publisher.publish(None, None, frozenset(), slave=True)
    generation = publisher.generation
    assert not publisher.publish(None, None, frozenset(), slave=True)
    assert publisher.generation == snapshot(store).generation == generation


def test_renewed_lease_is_published_in_a_new_session(
    publisher: Publisher, store: AttachedMemory
) -> None:
    publisher.publish(None, None, frozenset(), slave=True)
    before = snapshot(store).rings[0].session
    publisher.leases[0].renew(now=1.0)
    assert publisher.publish(None, None, frozenset(), slave=True)
    assert snapshot(store).rings[0].session > before


def test_destroyed_region_is_written_again_as_a_whole(
    publisher: Publisher, store: AttachedMemory
) -> None:
    publisher.publish(None, None, frozenset(), slave=True)
    os.pwrite(store.file.fileno(), bytes(md.SIZE), 0)
    publisher.reformat()
    assert publisher.publish(None, None, frozenset(), slave=True)
    assert store.metadata.header().magic == md.MAGIC
    assert snapshot(store).device.name == "dev"


@pytest.mark.parametrize("kept", [False, True])
def test_agent_reads_whether_the_front_ends_connection_is_kept(
    publisher: Publisher, backend: Backend, store: AttachedMemory, kept: bool
) -> None:
    publisher.publish(backend.setup, None, frozenset(), slave=True, kept=kept)
    assert (DeviceFlag.KEPT in snapshot(store).device.flags) == kept


def test_connection_that_there_is_not_is_not_kept(
    publisher: Publisher, store: AttachedMemory
) -> None:
    publisher.publish(None, None, frozenset(), slave=True, kept=True)
    assert DeviceFlag.KEPT not in snapshot(store).device.flags
