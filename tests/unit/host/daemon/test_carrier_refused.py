# SPDX-License-Identifier: Apache-2.0
"""A confined master whose memory was refused: its QEMU must not serve the rings."""

import subprocess

import pytest

from tests import json_document
from tests.fakes.frontend import Dropped, FrontEnd, Refused, RingAt, region
from tests.fakes.windows import MIB
from tests.unit.host.daemon import test_carrier
from tests.unit.host.daemon.served import Served, Through
from tests.unit.host.daemon.test_carrier import Process, Serve, is_open
from tests.unit.host.scene import SHARED_AT
from vhostpci_host.cli import print_status
from vhostpci_host.daemon import carrier
from vhostpci_host.device.status import describe
from vhostpci_shared import vhost_user as vu

returns, serve = test_carrier.returns, test_carrier.serve
process = test_carrier.process
STATE = "master's memory is refused: the master has no carrier"
LONG = 100.0


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(memory=1024 * MIB, confined=16 * MIB)


def master(served: Served, memory: vu.MemRegion | None = None) -> FrontEnd:
    """Connect a QEMU whose guest's driver is not loaded, with the right memory."""
    arena = served.server.device.store.file.fileno()
    shared = vu.MemRegion(SHARED_AT, served.config.shared, SHARED_AT, 0)
    found = FrontEnd(Through(served), [(memory or shared, arena)], user_base=0)
    found.connect()
    return found


def load(served: Served, qemu: FrontEnd) -> None:
    qemu.driver_ok([RingAt.nth(index, above=SHARED_AT) for index in range(2)])
    served.loop.advance(0.1)
    assert served.server.device.rings_run


def be_refused(served: Served, wait: float = LONG) -> str:
    """Connect a QEMU that has other memory; return what `status` says after that."""
    memory = vu.MemRegion(SHARED_AT, 16 * MIB, SHARED_AT, 0)
    with master(served, memory) as qemu, pytest.raises(Dropped):
        qemu.set_memory()
    served.loop.advance(wait)
    status = describe(served.server.device, carrier=served.server.carrier.describe())
    assert set(json_document.keys(status, known())) <= known()
    return print_status.text(status)


def known() -> set[str]:
    return json_document.documented("vhostpci-host status")


def test_it_is_kept_out_until_its_process_ends(
    served: Served, process: subprocess.Popen[bytes]
) -> None:
    """Whether there is an agent or not: it would be refused each time it comes."""
    agent = Process(served)
    said = be_refused(served)
    assert STATE in said
    assert f"  carrier  off until pid {process.pid} ends\n" in said
    assert "  problem  the memory at 0x20000000 has 16 MiB" in said
    assert not is_open(served)
    assert (
        served.said("dropped: SET_MEM_TABLE: the memory at 0x20000000 has 16 MiB") == 1
    )
    assert served.said(f"pid {process.pid} may not come back, and its card has no") == 1
    agent.end()
    served.loop.advance(LONG)
    assert not is_open(served)
    process.kill()
    process.wait()
    served.loop.advance()
    assert is_open(served)
    assert STATE not in print_status.text(
        describe(served.server.device, carrier=served.server.carrier.describe())
    )


def test_next_master_with_the_right_memory_is_served(
    served: Served, process: subprocess.Popen[bytes]
) -> None:
    be_refused(served)
    process.kill()
    process.wait()
    served.loop.advance()
    with master(served) as qemu:
        load(served, qemu)


@pytest.mark.parametrize("why", ["hidden", "elsewhere"])
def test_process_that_cannot_be_watched_is_refused_each_time(
    served: Served, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """It is disconnected all the same, and a QEMU that runs comes back in a second."""
    if why == "hidden":
        monkeypatch.setattr(carrier, "is_hidden", lambda _: True)
    else:
        monkeypatch.setattr("vhostpci_host.sockets.peer_pid", lambda _: 0)
    for _ in range(3):
        assert "no master" in be_refused(served, wait=1.0)
        assert is_open(served)
    assert (
        served.said("dropped: SET_MEM_TABLE: the memory at 0x20000000 has 16 MiB") == 1
    )


def test_front_end_that_leaves_by_itself_may_come_back(served: Served) -> None:
    """Also where memory was refused that its guest does not need any more."""
    with master(served) as qemu:
        load(served, qemu)
        qemu.regions = [(region(MIB), served.server.device.store.file.fileno())]
        with pytest.raises(Refused):
            qemu.set_memory()
        for index in range(2):
            qemu.stop_ring(index)
    served.loop.advance(LONG)
    assert is_open(served)
