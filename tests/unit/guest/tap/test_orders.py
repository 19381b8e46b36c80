# SPDX-License-Identifier: Apache-2.0
"""The orders to the helper for TAPs: what an agent needs, and no more."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fakes.netns import ip, private_network
from tests.fakes.plane import NO_PACKETS
from tests.unit.guest.tap.test_dropped import counted
from tests.waiting import eventually
from vhostpci_guest.errors import Unusable
from vhostpci_guest.privileges.channel import Channel, serve
from vhostpci_guest.tap import left
from vhostpci_guest.tap.bridge import Bridge
from vhostpci_guest.tap.naming import Rules
from vhostpci_guest.tap.orders import FORGET, MAKE_BRIDGE, TapOrders
from vhostpci_guest.tap.remote import RemoteRequests
from vhostpci_guest.tap.requests import LocalRequests
from vhostpci_guest.tap.settings import TapConfig, parse_address
from vhostpci_guest.tap.tap import IFF_NO_PI, IFF_TAP, Tap
from vhostpci_guest.tap.tap_port import Ports


@pytest.fixture
def channel(network: None, tmp_path: Path) -> Iterator[Channel]:
    """An agent without capabilities; its helper is a thread of the test."""
    bridge = Bridge("br0")
    bridge.make()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    requests = LocalRequests(vhost=tmp_path / "vhost-net")
    orders = TapOrders(requests, lambda: ["br0"], tmp_path / "7.sock")
    helper = threading.Thread(target=serve, args=(theirs, orders.handlers()))
    helper.start()
    channel = Channel(ours, "makes TAPs")
    yield channel
    channel.close()
    helper.join()
    theirs.close()


@pytest.fixture
def remote(channel: Channel) -> RemoteRequests:
    return RemoteRequests(channel)


@pytest.fixture
def tap(remote: RemoteRequests) -> Iterator[Tap]:
    """A TAP of an agent without capabilities."""
    tap = Tap("vp0", 2, requests=remote)
    yield tap
    tap.close()


def refused(why: str) -> AbstractContextManager[object]:
    return pytest.raises(PermissionError, match=why)


def test_tap_is_as_it_was_asked_for(tap: Tap, remote: RemoteRequests) -> None:
    config = TapConfig(
        mac="02:00:00:00:00:07",
        mtu=9000,
        addresses=tuple(map(parse_address, ("10.0.0.1/24", "fd00::1/64"))),
    )
    tap.leave_when_killed("vhostpci-guest net0")
    tap.configure(config)
    Bridge("br0").join(tap)
    shown = ip("-d", "addr", "show", "vp0")
    for part in (
        *("02:00:00:00:00:07", "mtu 9000", "10.0.0.1/24", "fd00::1/64", ",UP"),
        *("multi_queue", "alias vhostpci-guest net0", "master br0"),
    ):
        assert part in shown
    assert (tap.mtu, tap.bridge, tap.moved) == (9000, "br0", False)
    assert len(set(tap.fds)) == 2
    assert tap.idle
    # Maybe some: the kernel announces its addresses at once.
    before = counted("vp0")
    assert before <= tap.dropped <= counted("vp0")
    assert len(remote.counters(tap.fds[0])) == 16
    tap.set_carrier(True)
    assert eventually(lambda: not tap.idle)


def test_moved_tap_is_found_where_it_is(tap: Tap) -> None:
    with private_network():
        there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ip("link", "set", "vp0", "netns", f"/proc/{os.getpid()}/fd/{there}")
    assert tap.moved
    tap.set_mtu(9000)
    assert tap.mtu == 9000
    os.close(there)


def test_deleted_tap_says_so_whatever_it_is_asked(tap: Tap) -> None:
    ip("link", "del", "vp0")
    for ask in (
        lambda: tap.mtu,
        lambda: tap.bridge,
        lambda: tap.moved,
        lambda: tap.idle,
        lambda: tap.dropped,
        lambda: tap.set_mtu(9000),
    ):
        with pytest.raises(Unusable, match="vp0 is gone: another program deleted it"):
            ask()


def test_refusal_of_the_kernel_is_explained(tap: Tap) -> None:
    with pytest.raises(Unusable, match="the kernel refuses MTU 1"):
        tap.set_mtu(1)


def test_vhost_net_is_opened(remote: RemoteRequests, tmp_path: Path) -> None:
    node = tmp_path / "vhost-net"
    with pytest.raises(Unusable, match=r"No such file.*modprobe vhost_net"):
        remote.open_vhost_net()
    node.touch()
    fd = remote.open_vhost_net()
    assert os.path.samestat(os.fstat(fd), node.stat())
    os.close(fd)


def test_name_in_use_is_explained(remote: RemoteRequests) -> None:
    with pytest.raises(Unusable, match="TAP br0 exists, and is no TAP"):
        Tap("br0", 1, requests=remote)


def test_tap_of_an_agent_that_was_killed_is_found_or_removed(
    remote: RemoteRequests,
) -> None:
    def kill_after(queues: int) -> None:
        tap = Tap("vp0", queues)
        tap.leave_when_killed(left.alias("net0"))
        for fd in tap.fds:
            os.close(fd)
        tap.fds = ()

    ports = Ports(Rules(), requests=remote, **NO_PACKETS)
    for queues in (1, 2):
        kill_after(queues)
        port = ports.make("0000:00:05.0")
        port.open(1, "net0")
        assert port.name == ("vp0" if queues == 1 else "net0")
        port.close()
        assert "vp0" not in ip("link")


def test_interface_that_is_no_tap_of_an_agents_is_not_removed(
    remote: RemoteRequests,
) -> None:
    index = socket.if_nametoindex("br0")
    with refused(f"interface {index} is no TAP that an agent has left"):
        remote.remove(index)
    assert "br0" in ip("link")


@pytest.mark.parametrize("what", ["/dev/null", "/dev/zero", "/etc/passwd"])
def test_only_who_shows_a_tap_may_change_it(remote: RemoteRequests, what: str) -> None:
    fd = os.open(what, os.O_RDONLY)
    for ask in (
        lambda: remote.mtu(fd),
        lambda: remote.bridge(fd),
        lambda: remote.sends(fd),
        lambda: remote.dropped(fd),
        lambda: remote.moved(fd),
        lambda: remote.set(fd, "MTU", {"mtu": 9000}),
        lambda: remote.add_address(fd, "10.0.0.1", 24),
    ):
        with refused("the descriptor is no TAP's"):
            ask()
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net_ns_fd", 1),
        ("ifname", "a/b"),
        ("state", "down"),
        ("master", 1),
        ("mtu", 65522),
        ("mtu", "9000"),
        ("ifalias", "mine"),
        ("address", "01:00:5e:00:00:01"),
    ],
)
def test_settings_are_those_of_an_agent(
    tap: Tap, remote: RemoteRequests, name: str, value: str | int
) -> None:
    before = ip("link", "show", "vp0")
    with pytest.raises(PermissionError):
        remote.set(tap.fds[0], "something", {name: value})
    assert ip("link", "show", "vp0") == before


@pytest.mark.parametrize(
    ("address", "length"), [("10.0.0.1", 33), ("localhost", 24), ("10.0.0.1/8", 24)]
)
def test_address_that_is_none_is_refused(
    tap: Tap, remote: RemoteRequests, address: str, length: int
) -> None:
    with pytest.raises(PermissionError):
        remote.add_address(tap.fds[0], address, length)


@pytest.mark.parametrize(
    ("name", "flags"), [("vp1", 0x0001), ("vp1", 0x4000_0002), ("v" * 16, IFF_TAP)]
)
def test_interfaces_of_other_kinds_are_not_made(
    remote: RemoteRequests, name: str, flags: int
) -> None:
    with pytest.raises(PermissionError):
        remote.attach(name, flags | IFF_NO_PI)
    assert "vp1" not in ip("link")


def test_status_socket_that_is_removed_is_the_agents(
    remote: RemoteRequests, tmp_path: Path
) -> None:
    (tmp_path / "7.sock").touch()
    (tmp_path / "8.sock").touch()
    remote._channel.ask(FORGET)
    remote._channel.ask(FORGET)
    assert [path.name for path in tmp_path.iterdir()] == ["8.sock"]


def test_user_without_capabilities_cannot_attach_to_a_tap_of_ours(
    network: None,
) -> None:
    """The kernel lets every user attach to a TAP that has no owner."""
    tap = Tap("vp0", 2)
    said = as_nobody('Tap("vp0", 2)')
    tap.close()
    assert "TAP vp0 exists, and is another user's: run as that user or" in said


def test_user_may_attach_to_a_tap_that_is_his(network: None) -> None:
    ip("tuntap", "add", "dev", "vp0", "mode", "tap", "user", "65534")
    assert as_nobody('print(Tap("vp0", 1).made)') == "False"


def as_nobody(what: str) -> str:
    """Return what a statement prints that a user without rights runs."""
    program = f"""
import os
from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap.tap import Tap
os.setgroups([]); os.setresgid(*3 * [65534]); os.setresuid(*3 * [65534])
try:
    {what}
except Unusable as why:
    print(why)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_bridge_is_made_only_if_the_user_has_named_it(channel: Channel) -> None:
    ip("link", "del", "br0")
    channel.ask(MAKE_BRIDGE, "br0")
    assert "br0" in ip("link")
    with refused("'br1' is not a bridge that the user named"):
        channel.ask(MAKE_BRIDGE, "br1")
    assert "br1" not in ip("link")


def test_address_is_removed_and_one_that_is_gone_is_no_error(
    tap: Tap, remote: RemoteRequests
) -> None:
    address = parse_address("10.0.0.1/24")
    tap.add_address(address)
    assert "10.0.0.1/24" in ip("addr", "show", "vp0")
    tap.remove_address(address)
    assert "10.0.0.1/24" not in ip("addr", "show", "vp0")
    tap.remove_address(address)


def test_tap_is_renamed_and_leaves_its_bridge(tap: Tap) -> None:
    Bridge("br0").join(tap)
    assert tap.bridge == "br0"
    tap.leave_bridge()
    assert tap.bridge is None
    tap.rename("vp7")
    assert tap.name == "vp7"
