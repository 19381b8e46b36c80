# SPDX-License-Identifier: Apache-2.0
"""DPDK's virtio-user as the master: a driver that polls, and several kinds of memory.

testpmd answers every ping: each ping is one packet to it and one packet from it.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frontends.hugepages import MOUNTED, reserved
from tests.frontends.testpmd import HUGE, NO_HUGE, Testpmd
from tests.process.attach import AttachLab
from tests.process.kept import replace
from tests.process.lab import ATTACH, SLAVE_ADDRESS
from tests.waiting import wait_for

pytestmark = pytest.mark.frontends

MIB = 1 << 20
PAGES = 64
ADDRESSES = 16


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Enough huge pages for one testpmd."""
    with reserved(PAGES):
        yield


def assert_answers(lab: AttachLab, pmd: Testpmd) -> None:
    """Ping it, and check that it and the agent have both counted the packets."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a first ping comes back")
    assert lab.ping_from_slave(10) == 10
    assert min(pmd.counted()) >= 10
    lab.wait_packets(10)


def test_memory_without_huge_pages(lab: AttachLab, tmp_path: Path) -> None:
    lab.start()
    with Testpmd(lab.socket, tmp_path, NO_HUGE) as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        master = lab.status()["master"]
        assert master["regions"][0]["size"] == 64 * MIB
        assert "F_IN_ORDER" in master["features"]
        assert pmd.quit() == 0
    lab.wait_carrier("NO-CARRIER")


def test_front_end_that_listens_is_connected_to_again(
    lab: AttachLab, tmp_path: Path
) -> None:
    """DPDK's server=1: another daemon takes over from one that was killed."""
    path = tmp_path / "front-end"
    daemon = lab.start_daemon(*ATTACH, "--connect", str(path))
    lab.start_agent()
    assert "is not there yet" in lab.status()["connect_problem"]
    with Testpmd(path, tmp_path, options=",server=1") as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        assert lab.status()["master"]["pid"] == pmd.process.pid
        daemon.end(signal.SIGKILL)
        lab.start_daemon(*ATTACH, "--connect", str(path))
        assert_answers(lab, pmd)
        assert pmd.quit() == 0
    lab.wait_carrier("NO-CARRIER")


@pytest.mark.parametrize("in_order", [0, 1], ids=["", "in_order"])
@pytest.mark.parametrize("mergeable", [0, 1], ids=["", "mrg_rxbuf"])
def test_packed_rings(
    lab: AttachLab, tmp_path: Path, mergeable: int, in_order: int
) -> None:
    lab.start()
    card = f",packed_vq=1,mrg_rxbuf={mergeable},in_order={in_order}"
    with Testpmd(lab.socket, tmp_path, options=card) as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        assert "F_RING_PACKED" in lab.status()["master"]["features"]
        assert {ring["format"] for ring in lab.status()["rings"]} == {"packed"}
        # Many times around the ring of 256, and a restart of the driver.
        assert lab.ping_from_slave(600, "-i", "0.001") == 600
        pmd.run("port stop all")
        pmd.run("port start all")
        pmd.run("start")
        wait_for(lambda: lab.ping_from_slave(1) == 1, "a ping after the restart")
        assert lab.ping_from_slave(20) == 20
        assert pmd.quit() == 0


@pytest.mark.parametrize("mounted", [False, True], ids=["memfd", "hugetlbfs"])
@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_in_one_file(lab: AttachLab, tmp_path: Path, mounted: bool) -> None:
    lab.start()
    eal = ("--single-file-segments", "-m", "64") if mounted else HUGE
    prefix = MOUNTED if mounted else ()
    with Testpmd(lab.socket, tmp_path, eal, prefix=prefix) as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        assert len(lab.windows()) == 1


@pytest.mark.usefixtures("huge_pages")
def test_each_huge_page_in_a_file_of_its_own(lab: AttachLab, tmp_path: Path) -> None:
    lab.start()
    eal = ("--in-memory", "-m", "10")
    with Testpmd(lab.socket, tmp_path, eal, mbufs=1025) as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        windows = lab.windows()
        assert len(set(windows)) == len(windows) > 4


@pytest.mark.usefixtures("huge_pages")
def test_dpdk_itself_refuses_more_files_than_a_memory_table_can_hold(
    lab: AttachLab, tmp_path: Path
) -> None:
    lab.start()
    with Testpmd(lab.socket, tmp_path, ("--in-memory", "-m", "64")) as pmd:
        pmd.started()
        assert "Failed to set memory table" in pmd.log
        assert lab.windows() == []


@pytest.mark.usefixtures("huge_pages")
def test_heap_that_grows_while_the_port_is_started(
    lab: AttachLab, tmp_path: Path
) -> None:
    """Its file grows, so the mapping that the slave has becomes too short."""
    daemon, _ = lab.start()
    eal = ("--in-memory", "--single-file-segments", "-m", "16")
    with Testpmd(lab.socket, tmp_path, eal) as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        (region,) = lab.status()["master"]["regions"]
        assert region["size"] > 16 * MIB
        assert daemon.log.count("started rings") >= 2


def test_two_queue_pairs(lab: AttachLab, tmp_path: Path) -> None:
    """The TAP spreads packets by flow, so the test pings several addresses."""
    lab.start(pairs=2)
    with Testpmd(lab.socket, tmp_path, NO_HUGE, pairs=2) as pmd:
        pmd.started()
        lab.wait_carrier("UP")
        network = SLAVE_ADDRESS.rpartition(".")[0]
        for host in range(100, 100 + ADDRESSES):
            lab.run_in_slave("ping", "-c", "1", "-W", "1", f"{network}.{host}")
        lab.wait_packets(1)
        wait_for(lambda: min(pmd.counted()) >= ADDRESSES, "a packet for each address")


def test_testpmd_that_is_killed_can_be_replaced(lab: AttachLab, tmp_path: Path) -> None:
    lab.start()
    for _ in range(2):
        with Testpmd(lab.socket, tmp_path) as pmd:
            pmd.started()
            assert_answers(lab, pmd)
        lab.wait_carrier("NO-CARRIER")


def test_testpmd_that_connects_once_keeps_its_card_when_the_daemon_is_killed(
    lab: AttachLab, tmp_path: Path
) -> None:
    lab.start_daemon(*ATTACH, "--keeper", "auto")
    lab.start_agent()
    with Testpmd(lab.socket, tmp_path) as pmd:
        pmd.started()
        assert_answers(lab, pmd)
        replace(lab)
        assert lab.ping_from_slave(10) == 10
        pmd.run("port stop all")
        replace(lab)
        pmd.run("port start all")
        pmd.run("start")
        assert_answers(lab, pmd)
        assert pmd.quit() == 0
    lab.wait_carrier("NO-CARRIER")
