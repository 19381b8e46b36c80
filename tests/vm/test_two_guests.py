# SPDX-License-Identifier: Apache-2.0
"""Packets between two VMs, for each way in which the agent binds its device.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest --bind ... -- TAP
10.77.0.1                                    10.77.0.2
"""

import json
import time

import pytest

from tests.pings import came_back, ping
from tests.vm import traffic
from tests.vm.harness import Vm
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, TAP, Pair

pytestmark = pytest.mark.vm

each_bind = pytest.mark.parametrize(
    "served", ["kmod", "vfio", "uio", "sysfs"], indirect=True
)
vfio = pytest.mark.parametrize("served", ["vfio"], indirect=True)

SEND = """
import socket
server = socket.create_server(("", 8000))
server.accept()[0].sendfile(open("/tmp/sent", "rb"))
"""
RECEIVE = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 8000), timeout=20)
with open("/tmp/received", "wb") as file:
    while data := connection.recv(2**20):
        file.write(data)
"""

# The registers of q35's disk controller, which has no driver in this guest: QEMU
# emulates each load of them, which is slow, as an uncached load from a BAR is.
MEASURE = """
import json, mmap
from vhostpci_guest.serve import window_speed
controller = "/sys/bus/pci/devices/0000:00:1f.2/"
with open(controller + "enable", "w") as file:
    file.write("1")
with open(controller + "resource5", "r+b") as file:
    with mmap.mmap(file.fileno(), window_speed.PIECE) as registers:
        print(json.dumps(window_speed.measure(memoryview(registers)).status()))
"""


@each_bind
def test_every_ping_comes_back_both_ways(link: Pair) -> None:
    pings = link.ping_both_ways(count=20)
    assert pings.received == pings.sent >= 40


@each_bind
def test_tcp_flows_both_ways(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        assert traffic.tcp(link.master, SLAVE_ADDRESS, seconds=2) > 1
    with traffic.iperf_server(link.master):
        assert traffic.tcp(link.slave, MASTER_ADDRESS, seconds=2) > 1


@each_bind
def test_window_reads_as_fast_as_the_slaves_own_memory(link: Pair) -> None:
    (status,) = json.loads(link.slave.run("vhostpci-guest status -j").stdout)
    assert status["speed"]["mbps"] > 0
    assert not status["speed"]["slow"]


@vfio
def test_packets_go_to_the_tap_by_io_uring(link: Pair) -> None:
    (status,) = json.loads(link.slave.run("vhostpci-guest status -j").stdout)
    [sends] = (ring for ring in status["rings"] if ring["ring"] == 1)
    assert (sends["method"], sends["method_reason"]) == ("io_uring", "")


@vfio
def test_agent_sees_whether_its_tap_knows_udp_segments(link: Pair) -> None:
    (status,) = json.loads(link.slave.run("vhostpci-guest status -j").stdout)
    release = tuple(map(int, link.slave.kernel.split(".")[:2]))
    assert status["uso"] == (release >= (6, 2))
    # What is counted has a name for scripts, too.
    (device,) = json.loads(link.slave.run(f"vhostpci-guest stats -j {TAP}").stdout)
    assert min(device["statistics"][way] for way in ("rx_packets", "tx_packets")) > 0


@vfio
def test_registers_read_slowly(link: Pair) -> None:
    seen = []
    # Many times, and not at once: other load slows the copy of our own memory.
    for attempt in range(30):
        time.sleep(attempt / 10)
        seen.append(json.loads(link.slave.run(["python3", "-c", MEASURE]).stdout))
        if seen[-1]["slow"]:
            return
    pytest.fail(f"not slow: {seen}")


@vfio
def test_udp_arrives(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        assert traffic.udp(link.master, SLAVE_ADDRESS, seconds=2, rate="20M") > 1


@vfio
@pytest.mark.parametrize("size", [0, 1, 56, 1472, 1473, 8000, 60000])
def test_packets_of_any_size_cross_unharmed(link: Pair, size: int) -> None:
    # -p fills the packet with a pattern; ping says "wrong data byte" if it changed.
    command = " ".join(ping(3, "-p", "a5", "-s", str(size)))
    result = link.master.run(f"{command} {SLAVE_ADDRESS}", timeout=90)
    assert came_back(result.stdout, 3) == 3
    assert "wrong data byte" not in result.stdout


@vfio
def test_full_packets_with_two_vlan_tags_arrive_both_ways(link: Pair) -> None:
    """Their frames have 1,522 bytes: eight more than a TAP's MTU of 1,500 says."""
    ends = [(link.master, "eth0", "10.78.0.1"), (link.slave, TAP, "10.78.0.2")]
    for vm, interface, address in ends:
        vm.run(
            f"ip link add link {interface} name outer type vlan id 10"
            " && ip link add link outer name inner type vlan id 20"
            f" && ip addr add {address}/24 dev inner"
            " && ip link set outer up && ip link set inner up"
        )
    (master, *_), (slave, *_) = ends
    whole = f"-M do -s {1500 - 28}"  # without the headers of IP and ICMP
    for source, address in ((master, "10.78.0.2"), (slave, "10.78.0.1")):
        pings = traffic.ping(source, address, count=5, options=whole)
        assert pings.received == pings.sent >= 5
    for vm, *_ in ends:
        vm.run("ip link del outer")


@vfio
@pytest.mark.parametrize("upwards", [True, False], ids=["to slave", "to master"])
def test_a_file_arrives_as_it_was_sent(link: Pair, upwards: bool) -> None:
    ends = [(link.master, MASTER_ADDRESS), (link.slave, SLAVE_ADDRESS)]
    (source, address), (sink, _) = ends if upwards else ends[::-1]
    source.run("dd if=/dev/urandom of=/tmp/sent bs=1M count=16")
    source.spawn(["python3", "-c", SEND])
    source.wait_for("grep -q ':1F40 .* 0A ' /proc/net/tcp")
    sink.run(["python3", "-c", RECEIVE, address], timeout=60)
    assert _sum(source, "/tmp/sent") == _sum(sink, "/tmp/received")


def _sum(vm: Vm, path: str) -> str:
    return vm.run(f"sha256sum < {path}", timeout=60).stdout
