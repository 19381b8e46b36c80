# SPDX-License-Identifier: Apache-2.0
"""Confined masters that live long, that are set up wrong, and with a hostile slave.

  master                      vhostpci-host              namespace, or a slave VM
private memory: secrets
shared region ------------------ window ---------------- vhostpci-guest
"""

import mmap
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.findings import good
from tests.vm import (
    confined,
    dmesg,
    image,
    kernel_modules,
    memory,
    process,
    traffic,
    wheels,
)
from tests.vm.channel import GuestError
from tests.vm.confined import MIB, PAGE, Change, ConfinedMaster, Link, Range
from tests.vm.daemon import Daemon, DaemonError
from tests.vm.kernels import SUPPORTED_KERNELS
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair, Slave
from tests.vm.test_confined import ANONYMOUS, exchange, keep_secrets, secrets
from tests.waiting import wait_for

pytestmark = [pytest.mark.vm, pytest.mark.long]

REGION = Range(0x8000000, 0x8000000 + confined.REGION)
RINGS = confined.POOL
"""Where the ring area begins in the window."""


def assert_nothing_is_found(link: Link) -> None:
    found = confined.search(link.window, secrets(link.master)).times
    assert found == dict.fromkeys(found, 0)
    assert set(link.master.pages(REGION).kinds) == {"reserved", "allocated", "free"}


def assert_pings_cross(link: Link) -> None:
    pings = traffic.ping(link.master, SLAVE_ADDRESS)
    pings += traffic.ping(link.slave, MASTER_ADDRESS)
    assert pings.received == pings.sent >= 20


def assert_no_packet_crosses(link: Link) -> None:
    link.master.run(f"ip addr add {MASTER_ADDRESS}/24 dev eth0; ip link set eth0 up")
    link.slave.wait_tap()
    assert traffic.ping(link.master, SLAVE_ADDRESS, 3).received == 0


def test_slave_vm_finds_nothing_in_its_device(here: Path) -> None:
    """Every byte of the BAR is searched in the VM that has it."""
    with confined.served(here) as daemon:
        guest = image.build(wheels.guest_wheels())
        args = daemon.qemu_args("slave")
        slave = Slave("slave", guest, logs=here, args=args, iommu=True)
        master = confined.make(daemon, here)
        with slave, master:
            slave.wait_ready()
            master.wait_ready()
            with slave.agent("sysfs"):
                Pair(daemon, master, slave).assert_packets_cross()
                keep_secrets(master)
                for back in (False, True):
                    with traffic.iperf_server(master):
                        assert traffic.tcp(slave, MASTER_ADDRESS, 2, back=back) > 0
                find = "grep -l 0x1110 /sys/bus/pci/devices/*/device"
                device = Path(slave.run(find).stdout.strip()).parent
                bar = str(device / "resource2")
                found = confined.search_in(slave, bar, secrets(master))
    assert found.times == dict.fromkeys(found.times, 0)
    assert found.bytes > confined.REGION


def test_memory_of_every_life_of_the_master_stays_private(here: Path) -> None:
    """Frames of 9000 bytes, an ordinary card, a DIMM, and a reboot."""
    changes = [
        ("1676M", "1676M,slots=2,maxmem=8G"),
        ("iommu_platform=on", "iommu_platform=on,host_mtu=9000"),
    ]
    more = ["-netdev", "user,id=user,restrict=on"]
    more += ["-device", "virtio-net-pci,netdev=user"]
    with confined.linked(here, args=changes, more=more) as link:
        keep_secrets(link.master)
        exchange(link)
        link.master.run("ip link set eth0 mtu 9000")
        link.slave.run("ip link set vp0 mtu 9000")
        link.master.wait_for(f"ping -n -q -c 1 -W 1 -M do -s 8900 {SLAVE_ADDRESS}")
        for source, to in ((link.master, SLAVE_ADDRESS), (link.slave, MASTER_ADDRESS)):
            assert traffic.ping(source, to, options="-M do -s 8900").received >= 10
        link.master.run("ip addr add 10.0.2.15/24 dev eth1 && ip link set eth1 up")
        assert traffic.ping(link.master, "10.0.2.2", 2).received
        assert_nothing_is_found(link)
        memory.plug_dimm(link.master, 256 * MIB, share=False)
        assert_pings_cross(link)
        assert_nothing_is_found(link)
        link.master.reboot()
        confined.wait_packets(link)
        keep_secrets(link.master)
        exchange(link)
        assert_nothing_is_found(link)
        dmesg.check(link.master)


REFUSED = "master's memory is refused: the master has no carrier"
NET = "virtio-net"
SHARES_MORE = (
    "ram,id=vhostpci-card-high",
    "memfd,share=on,id=vhostpci-card-high",
)
"""What makes a master one that is refused."""
LENDS = (' sysctl.vm.lowmem_reserve_ratio="1 1"', "")
"""What makes a master one that lends the ring area to programs."""


@pytest.mark.parametrize("lends", [False, True], ids=["kept", "lent"])
def test_programs_get_the_ring_area_only_where_the_kernel_lends_it(
    here: Path, lends: bool
) -> None:
    """A program takes all memory that there is, until the kernel kills it."""
    with confined.linked(here, words=[LENDS] if lends else []) as link:
        link.master.exhaust(ANONYMOUS, 4096)
        found = confined.search(link.window, secrets(link.master)).times
        assert_pings_cross(link)
        assert ("lending" in link.check()) == lends
    assert found[ANONYMOUS] > 1000 if lends else found == dict.fromkeys(found, 0)


SEEN_FROM_OUTSIDE = [
    f"confined-{one}" for one in ("memory", "card", "devices", "words")
]
SCREEN = ("drm", "drm_kms_helper", "drm_shmem_helper", "drm_client_lib", "bochs")
"""The driver of QEMU's usual screen, after what it needs."""


def test_default_devices_of_qemu_put_nothing_into_the_region(here: Path) -> None:
    """The command of docs/confined.md has them; other tests have -nodefaults."""
    with confined.linked(here, defaults=True) as link:
        for name in SCREEN:
            kernel_modules.load(link.master, confined.KERNEL, name)
        link.master.wait_for("test -e /sys/bus/pci/drivers/bochs-drm/0000:*")
        keep_secrets(link.master)
        link.master.run("head -c 1048576 /root/secret >/dev/fb0")
        exchange(link)
        assert_nothing_is_found(link)
        assert link.check() == {}
        assert good(link.daemon.doctor(), *SEEN_FROM_OUTSIDE)


def test_check_in_the_master_finds_what_was_plugged_later(here: Path) -> None:
    """A device that comes by QMP is on no command line: `doctor` asks the monitor."""
    more = ["-netdev", "user,id=user,restrict=on"]
    for name in ("one", "two"):
        more += ["-device", f"pcie-root-port,id={name},chassis={len(more)}"]
    with confined.linked(here, more=more) as link:
        master = link.master
        assert link.check() == {}
        assert good(link.daemon.doctor(), *SEEN_FROM_OUTSIDE)
        by_monitor = ("--master-qmp", str(master.run_dir / "qmp"))
        assert good(link.daemon.doctor(*by_monitor), "confined-plugged")
        kernel_modules.load(master, confined.KERNEL, "e1000")
        master.qmp("device_add", driver="e1000", bus="one", netdev="user", id="a")
        master.wait_for("test -e /sys/bus/pci/drivers/e1000/0000:*")
        assert good(link.daemon.doctor(), *SEEN_FROM_OUTSIDE)
        with pytest.raises(DaemonError, match="the master has e1000"):
            link.daemon.doctor(*by_monitor)
        found = link.check()
        assert [*found] == ["drivers"]
        assert "e1000 (0000:" in found["drivers"]
        master.qmp("device_del", id="a")
        master.wait_for("! test -e /sys/bus/pci/drivers/e1000/0000:*")
        card = {"driver": "virtio-net-pci", "disable-legacy": "on"}
        master.qmp("device_add", **card, bus="two", iommu_platform=True, id="b")
        master.wait_for("ls -d /sys/class/net/eth1")
        with pytest.raises(DaemonError, match="has virtio-net-pci with iommu_platform"):
            link.daemon.doctor(*by_monitor)
        found = link.check()
        assert [*found] == ["virtio"]


def test_doctor_finds_a_vhost_user_card_that_was_plugged_later(here: Path) -> None:
    """The master's kernel cannot see whose card it is: only QEMU can."""
    more = ["-device", "pcie-root-port,id=one,chassis=1"]
    with confined.linked(here, more=more) as link, Daemon("more", logs=here) as other:
        master = link.master
        path = str(other.run_dir / "more.vhost-user")
        address = {"type": "unix", "data": {"path": path}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        master.qmp("chardev-add", id="more", backend=backend)
        master.qmp("netdev_add", type="vhost-user", id="more", chardev="more")
        by_monitor = ("--master-qmp", str(master.run_dir / "qmp"))
        assert good(link.daemon.doctor(*by_monitor), "confined-plugged")
        card = {"driver": "virtio-net-pci", "vectors": 0}  # 0: see --tcg
        master.qmp("device_add", **card, bus="one", netdev="more")
        master.wait_for("ls -d /sys/class/net/eth1")
        with pytest.raises(DaemonError, match="has virtio-net-pci, whose back-end is"):
            link.daemon.doctor(*by_monitor)
        assert link.check() == {}


def has_rings_elsewhere(link: Link) -> None:
    assert link.daemon.status()["state"] == "master's rings cannot be served"
    link.daemon.wait_said("is in none of the 1 memory regions")


def has_buffers_elsewhere(link: Link) -> None:
    link.daemon.wait_said("driver broke ring")


def shares_more(link: Link) -> None:
    status = link.daemon.status()
    assert status["state"] == REFUSED
    assert "0x100000000" in status["carrier"]["refused"]


WRONG: dict[str, tuple[list[Change], list[Change], Callable[[Link], None]]] = {
    "no bounce pool is forced": ([], [("32768,force", "32768")], has_buffers_elsewhere),
    "a pool in boot memory": ([], [("memmap=", "_")], has_buffers_elsewhere),
    "no ring area": ([], [("cma=16M@0xc000000-0xd000000", "")], has_rings_elsewhere),
    "NUMA": ([], [("numa=off", "")], has_rings_elsewhere),
    "no DMA API": ([("platform=on", "platform=off")], [], has_rings_elsewhere),
    "more is shared": ([SHARES_MORE], [], shares_more),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_packet_crosses_where_the_set_up_is_wrong(here: Path, name: str) -> None:
    args, words, tells = WRONG[name]
    with confined.started(here, args=args, words=words) as link:
        assert_no_packet_crosses(link)
        tells(link)


def test_refused_masters_rings_are_not_served_by_its_qemu_either(here: Path) -> None:
    """QEMU's own back-end reads all of its guest's memory, and the slave these rings.

    It would serve them with the link up, after "falling back on userspace virtio".
    """
    with confined.served(here) as daemon, process.serving(daemon, here / "agent.log"):
        with confined.make(daemon, here / "refused", args=[SHARES_MORE]) as master:
            master.wait_ready()
            assert_stays_without_carrier(daemon, master)
            assert "falling back on userspace virtio" in master.qemu_said()
            master.reboot()
            assert_stays_without_carrier(daemon, master)
            assert master.qemu_said().count("falling back") == 1
        for text in ("front-end connected", "dropped", "is not the shared region"):
            assert daemon.output().count(text) == 1
        # As the line says: start it with other memory.
        with confined.make(daemon, here / "right") as master:
            master.wait_ready()
            master.configure()
            daemon.wait_state("running")
            assert traffic.ping(master, SLAVE_ADDRESS, 3).received


def assert_stays_without_carrier(daemon: Daemon, master: ConfinedMaster) -> None:
    """Check that nothing moves in the rings, whatever the guest sends."""
    master.run(f"ip addr add {MASTER_ADDRESS}/24 dev eth0; ip link set eth0 up")
    daemon.wait_state(REFUSED)
    assert daemon.status()["carrier"]["waits_for"] == master.pid
    # It says once that the socket is not there, and then goes on trying.
    master.wait_until(lambda: "No such file" in master.qemu_said(), master.qemu_said)
    said = master.qemu_said()
    (card,) = [one for one in master.qmp("x-query-virtio") if one["name"] == NET]
    for _ in range(2):
        master.run(f"ping -n -q -c 3 -W 1 {SLAVE_ADDRESS}", check=False)
        assert not master.has_carrier("eth0")
        for queue in range(2):
            ring = master.qmp(
                "x-query-virtio-queue-status", path=card["path"], queue=queue
            )
            assert (ring["used-idx"], ring["last-avail-idx"]) == (0, 0)
    assert master.qemu_said() == said


def test_shared_memory_that_is_plugged_later_takes_the_card_at_the_next_start(
    here: Path,
) -> None:
    """While its rings are served, QEMU takes them not back: nothing changes."""
    more = [("1676M", "1676M,slots=2,maxmem=8G")]
    with confined.linked(here, args=more) as link:
        memory.plug_dimm(link.master, 256 * MIB, share=True)
        link.master.wait_until(
            lambda: "refused ADD_MEM_REG" in link.daemon.output(), link.daemon.output
        )
        assert_pings_cross(link)
        assert "falling back" not in link.master.qemu_said()
        assert len(link.daemon.status()["master"]["regions"]) == 1
        link.master.reboot()
        assert_stays_without_carrier(link.daemon, link.master)


@pytest.mark.parametrize("version", ["6.1", "6.12"])
def test_kernel_without_a_ring_area_has_no_traffic_and_is_told_why(
    here: Path, version: str
) -> None:
    """Those of Debian 12 and 13 for amd64, which are built without CONFIG_DMA_CMA."""
    platform = confined.Platform(SUPPORTED_KERNELS[version])
    with confined.started(here, on=platform) as link:
        assert_no_packet_crosses(link)
        has_rings_elsewhere(link)
        said = link.master.run("dmesg").stdout
        assert re.search("Unknown kernel command line parameters .*cma=16M@", said)
        checked = link.check()
        # Where the ring area should be there is memory for whatever comes.
        assert link.master.pages(REGION).kinds["free"] == 16 * MIB // PAGE
    assert "of Debian's kernels these can: sid's for amd64" in checked["kernel"]
    assert "the bounce pool's pages: 4096 free" in checked["pages"]


def test_pool_that_is_too_small_leaves_the_rest_of_the_region_to_everything(
    here: Path,
) -> None:
    """Packets cross all the same, and the daemon cannot know: see docs/security.md."""
    with confined.linked(here, words=[("32768", "16384"), LENDS]) as link:
        pages = link.master.pages(REGION).kinds
        assert pages["reserved"] == confined.POOL // PAGE // 2
        link.master.exhaust(ANONYMOUS, 4096)
        found = confined.search(link.window, secrets(link.master)).times
        assert found[ANONYMOUS] > 1000


def test_pool_that_is_full_drops_packets_and_tcp_goes_on(here: Path) -> None:
    """The least pool, with rings that are four times as long as usual."""
    queues = "rx_queue_size=1024,tx_queue_size=1024"
    args = [("guest_announce=off", f"guest_announce=off,{queues}")]
    with confined.linked(here, args=args, pool=16 * MIB) as link:
        for back in (True, False, True, False):
            with traffic.iperf_server(link.master):
                rate = traffic.tcp(link.slave, MASTER_ADDRESS, 4, 8, back=back)
            assert rate > 0
        said = link.master.run("dmesg").stdout
        assert "swiotlb buffer is full" in said
        assert "eth0: Unexpected TXQ (0) queue failure: -12" in said
        dropped = link.master.run("cat /sys/class/net/eth0/statistics/tx_dropped")
        assert int(dropped.stdout) > 0
        assert_pings_cross(link)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_garbage_over_the_region_costs_the_master_no_more_than_a_reset(
    here: Path, seed: int
) -> None:
    """Its kernel may hang or crash (docs/security.md says what was seen)."""
    with confined.linked(here) as link:
        link.master.spawn(f"exec ping -f {SLAVE_ADDRESS}")
        time.sleep(1)
        random = Random(seed)
        with link.window.open("r+b", buffering=0) as window:
            for at in range(0, confined.REGION, MIB):
                os.pwrite(window.fileno(), random.randbytes(MIB), at)
        time.sleep(3)
        assert link.master.is_running()
        link.master.qmp("system_reset")
        link.master.wait_rebooted()
        confined.wait_packets(link)
        keep_secrets(link.master)
        exchange(link)
        assert_nothing_is_found(link)


def test_slave_that_changes_a_flag_stops_the_masters_kernel(here: Path) -> None:
    """Linux 7.2 follows the flags of a descriptor table that its device can write.

    Where each descriptor has a next one there is no last one.  A slave learns nothing
    by it.  If this fails, Linux has been repaired, and docs/security.md is to say so.
    """
    with confined.linked(here) as link:
        link.master.spawn(f"exec ping -f {SLAVE_ADDRESS}")
        time.sleep(1)
        _chain_all_descriptors(link.window, seconds=3)
        with pytest.raises(GuestError, match="no answer"):
            link.master.call("peek", timeout=0, path="/proc/uptime")


def _chain_all_descriptors(window: Path, seconds: float) -> None:
    """Set the flag NEXT in all descriptors of the rings, for so long."""
    flags, next_flag = 12, 1
    with _descriptors(window) as (view, places):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for at in places:
                view[at + flags] |= next_flag


@contextmanager
def _descriptors(window: Path) -> Iterator[tuple[mmap.mmap, list[int]]]:
    """The slave's window, and where in it the rings' descriptors are."""
    file = os.open(window, os.O_RDWR)
    with mmap.mmap(file, confined.REGION) as view:
        os.close(file)
        tables = [
            at
            for at in range(RINGS, RINGS + MIB, PAGE)
            if REGION.start <= int.from_bytes(view[at : at + 8], "little") < REGION.end
        ]
        yield view, [at + one for at in tables for one in range(0, PAGE, 16)]


def test_qemu_follows_no_descriptor_of_a_ring_that_it_empties(here: Path) -> None:
    """It does so with the link down: the slave could name any memory of the master."""
    size = f"{confined.MEMORY // MIB}M"
    device = Daemon("card", memory=size, confined="64M", logs=here, carrier_grace="30")
    with device as daemon, confined.make(daemon, here) as master:
        with process.serving(daemon, here / "agent.log") as slave:
            master.wait_ready()
            link = Link(daemon, master, slave)
            confined.wait_packets(link)
            os.kill(slave.pid, signal.SIGKILL)
        # A ping has one packet in the ring at a time.
        for _ in range(3):
            master.spawn(f"exec ping -n -q {SLAVE_ADDRESS}")
        wait_for(lambda: (tx_waits(daemon)["fill"] or 0) > 0, daemon.output)
        ring = tx_waits(daemon)
        with _descriptors(link.window) as (view, places):
            for at in places:
                view[at + 8 : at + 12] = bytes(4)  # its length
        daemon.wait_state("no agent: the master has no carrier")
        master.wait_until(lambda: not master.has_carrier("eth0"), lambda: "no carrier")
        end = (ring["used_index"] + ring["fill"]) % 2**16
        found = tx_ring(master)
        assert found["used-idx"] == found["last-avail-idx"] >= end
        assert "zero sized buffers are not allowed" not in master.qemu_said()


def tx_waits(daemon: Daemon) -> dict[str, int]:
    """Where the transmit ring stands, for the daemon, and how much waits in it."""
    found: dict[str, int] = daemon.status()["rings"][1]
    return found


def tx_ring(master: ConfinedMaster) -> dict[str, int]:
    """Where the transmit ring of its card stands, for QEMU."""
    (card,) = [one for one in master.qmp("x-query-virtio") if one["name"] == NET]
    found: dict[str, int] = master.qmp(
        "x-query-virtio-queue-status", path=card["path"], queue=1
    )
    return found
