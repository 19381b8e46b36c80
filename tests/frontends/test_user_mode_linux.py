# SPDX-License-Identifier: Apache-2.0
"""User Mode Linux as the master: a real Linux virtio-net driver, without a VM."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.frontends.uml import UserModeLinux, card
from tests.process.attach import AttachLab
from tests.process.kept import replace
from tests.process.lab import ATTACH, SLAVE_ADDRESS
from tests.waiting import wait_for

pytestmark = pytest.mark.frontends


Booted = tuple[AttachLab, UserModeLinux]


@contextmanager
def booted(lab: AttachLab, directory: Path, *options: str) -> Iterator[UserModeLinux]:
    """Boot User Mode Linux as the master of a lab, and wait for the slave's carrier.

    The options are the daemon's.
    """
    lab.start_daemon(*ATTACH, *options)
    lab.start_agent()
    with UserModeLinux(card(lab.socket), directory) as uml:
        uml.up()
        lab.wait_carrier("UP")
        yield uml


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A lab and its master, for the tests that leave both as they were."""
    directory = tmp_path_factory.mktemp("shared")
    with (
        private_network(),
        AttachLab(directory) as lab,
        booted(lab, directory) as uml,
    ):
        yield lab, uml


@pytest.fixture
def uml(lab: AttachLab, tmp_path: Path) -> Iterator[UserModeLinux]:
    """A master of this test's lab."""
    with booted(lab, tmp_path) as uml:
        yield uml


def iperf(lab: AttachLab, uml: UserModeLinux, *options: str) -> float:
    """Return Mbit/s of a second of TCP from the master, or with -R to the master."""
    server = lab.start_server([*lab.slave.prefix, "iperf3", "-s", "-1", "--forceflush"])
    server.wait_log("listening")
    words = " ".join(options)
    report = json.loads(uml.run(f"iperf3 -J -t 1 -c {SLAVE_ADDRESS} {words}"))
    server.wait()  # the next one needs its port
    assert "error" not in report, report["error"]
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


def test_every_ping_comes_back_and_is_counted(shared: Booted) -> None:
    lab, uml = shared
    before = lab.packets()
    assert uml.ping(20) == 20
    assert lab.ping_from_slave(20) == 20
    lab.wait_packets(40, before)


def test_its_memory_is_one_window_whose_size_is_no_power_of_two(shared: Booted) -> None:
    lab, _ = shared
    (region,) = lab.status()["master"]["regions"]
    assert region["guest_addr"] == region["offset"] > 0
    assert (region["offset"] + region["size"]).bit_count() > 1


@pytest.mark.parametrize("options", [(), ("-R",)], ids=["from it", "to it"])
def test_tcp_flows(shared: Booted, options: tuple[str, ...]) -> None:
    assert iperf(*shared, *options) > 1.0


def test_slave_that_starts_later_gets_its_kicks_without_the_daemon(
    lab: AttachLab, tmp_path: Path
) -> None:
    lab.start_daemon(*ATTACH)
    with UserModeLinux(card(lab.socket), tmp_path) as uml:
        uml.up()
        lab.start_agent()
        lab.wait_carrier("UP")
        before = [ring["kicks_relayed"] for ring in lab.status()["rings"]]
        assert uml.ping() == 5
        rings = lab.status()["rings"]
        assert all(ring["kick_direct"] for ring in rings)
        assert [ring["kicks_relayed"] for ring in rings] == before


def test_driver_that_is_reloaded_without_notice_works_again(
    lab: AttachLab, uml: UserModeLinux
) -> None:
    """And its kicks and interrupts, which are new, do not pass through the daemon."""
    uml.ping()
    uml.reload_driver()
    wait_for(lambda: uml.ping(1) == 1, "a first ping comes back")
    assert uml.ping() == 5
    assert lab.ping_from_slave() == 5
    rings = lab.status()["rings"]
    assert all(ring["kick_direct"] for ring in rings)
    assert [ring["kicks_relayed"] for ring in rings] == [0, 0]


def test_user_mode_linux_that_is_killed_can_be_replaced(
    lab: AttachLab, uml: UserModeLinux, tmp_path: Path
) -> None:
    (before,) = lab.status()["master"]["regions"]
    uml.kill()
    lab.wait_carrier("NO-CARRIER")
    (tmp_path / "next").mkdir()
    with UserModeLinux(card(lab.socket), tmp_path / "next", "64M") as second:
        second.up()
        lab.wait_carrier("UP")
        wait_for(lambda: second.ping(1) == 1, "a first ping comes back")
        assert second.ping() == 5
        (after,) = lab.status()["master"]["regions"]
        assert after["window"] != before["window"]


def test_it_does_not_notice_that_the_daemon_is_killed(
    lab: AttachLab, tmp_path: Path
) -> None:
    with booted(lab, tmp_path, "--keeper", "auto") as uml:
        assert uml.ping() == 5
        replace(lab)
        assert uml.ping() == 5
        # It says nothing of a driver's reload, and connects only once.
        uml.reload_driver()
        replace(lab)
        lab.wait_carrier("UP")
        wait_for(lambda: uml.ping(1) == 1, "a first ping comes back")
        assert uml.ping() == 5
        assert iperf(lab, uml) > 0
