# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed, or ends, and is started again while both VMs run.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
 goes on            ends, starts             plugged again, or restarted
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import image, pair, qemu, wheels
from tests.vm.daemon import Daemon
from tests.vm.pair import SLAVE_ADDRESS, TAP, Master, Pair, Slave
from tests.waiting import wait_for

pytestmark = pytest.mark.vm

NO_CARRIER = f"ip link show {TAP} | grep -q NO-CARRIER"


@pytest.fixture(scope="module")
def served(logs: Path) -> Iterator[tuple[Daemon, Master]]:
    """A daemon with a master VM, which all tests leave running."""
    here = logs / "daemon_ends"
    with Daemon("card", memory="512M", logs=here) as daemon:
        master, _ = pair.make(daemon, here)
        with master:
            master.wait_ready()
            master.configure()
            yield daemon, master


@contextmanager
def new_slave(daemon: Daemon, master: Master) -> Iterator[Pair]:
    """Boot a slave VM with the device on its command line."""
    _, slave = pair.make(daemon, daemon.log.parent)
    with slave:
        slave.wait_ready()
        yield Pair(daemon, master, slave)


def assert_packets_cross(link: Pair) -> None:
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_next_daemon_serves_the_master_and_says_that_the_slave_must_be_plugged_again(
    served: tuple[Daemon, Master], number: signal.Signals
) -> None:
    daemon, master = served
    with new_slave(daemon, master) as link, link.slave.agent("vfio") as agent:
        assert_packets_cross(link)
        said = len(daemon.output())
        daemon.restart(number)
        daemon.wait_state("slave must be plugged again")
        assert "refused" not in daemon.output()[said:]
        assert daemon.status()["master"]["regions"]
        assert "the slave VM is connected to an earlier daemon" in daemon.output()
        # No packet could cross, so the slave's kernel must know that.
        link.slave.wait_for(NO_CARRIER)
        wait_for(
            lambda: "has no connection to this device" in agent.output(),
            agent.output,
        )
        (seen,) = link.slave.agents()
        assert seen["daemon"] == "not connected to this device"
    # The advice helps, and the master needs no restart.
    with new_slave(daemon, master) as link, link.slave.agent("vfio"):
        assert_packets_cross(link)


def test_master_that_has_more_than_the_next_daemon_offers_comes_back(
    served: tuple[Daemon, Master],
) -> None:
    """Its QEMU refuses that once, and would do so each second for as long as it runs.

    It gives its guest what the card was offered first, also the next driver.
    """
    daemon, master = served

    def features() -> list[str]:
        found: list[str] = (daemon.status()["master"] or {"features": []})["features"]
        return found

    daemon.restart(signal.SIGTERM, "--features", "dpdk")
    assert "NET_F_CSUM" in daemon.status()["features"]["withheld"]
    wait_for(lambda: "NET_F_CSUM" in features(), master.qemu_said)
    said = "vhost lacks feature mask"
    assert master.qemu_said().count(said) == 1
    master.configure()
    pid = daemon.status()["master"]["pid"]
    master.reload_driver()
    master.configure()
    assert "NET_F_CSUM" in features()
    assert master.qemu_said().count(said) == 1
    assert daemon.output().count(f"front-end (pid {pid}) left without features") == 1
    daemon.restart(signal.SIGTERM)
    wait_for(lambda: "NET_F_CSUM" in features(), master.qemu_said)


def test_next_daemon_plugs_the_slaves_device_again(logs: Path, tmp_path: Path) -> None:
    """In arena mode, too, the daemon may be the one that plugs."""
    here, monitor = logs / "daemon_plugs_again", tmp_path / "qmp"
    args = [*qemu.ports(1, "1G"), "-qmp", f"unix:{monitor},server=on,wait=off"]
    slave = Slave(
        *("slave", image.build(wheels.guest_wheels())),
        logs=here,
        args=args,
        iommu=True,
    )
    with (
        Daemon("card", memory="512M", logs=here, slave_qmp=monitor) as daemon,
        slave,
    ):
        master, _ = pair.make(daemon, here)
        with master:
            slave.wait_ready()
            master.wait_ready()
            address = ("--tap", TAP, "--address", f"{SLAVE_ADDRESS}/24")
            with slave.waiting_agent("--bind", "vfio", *address):
                link = Pair(daemon, master, slave)
                master.configure()
                assert_packets_cross(link)
                daemon.restart(signal.SIGKILL)
                daemon.wait_state("running", timeout=120)
                assert_packets_cross(link)
