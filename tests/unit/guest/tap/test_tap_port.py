# SPDX-License-Identifier: Apache-2.0
"""The ports of an agent: TAPs by the user's rules, and the bridge that they join."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TypedDict, Unpack

import pytest

from tests.fakes.netns import ip
from tests.fakes.plane import NO_PACKETS, opened
from tests.waiting import eventually
from vhostpci_guest.errors import Unusable
from vhostpci_guest.serve.features import options
from vhostpci_guest.tap.bridge import Bridge
from vhostpci_guest.tap.naming import (
    Rules,
    make_rules,
    parse_address_rule,
    parse_mac_rule,
    parse_tap,
)
from vhostpci_guest.tap.tap_port import Ports, TapPort


class Options(TypedDict, total=False):
    """What the user wants."""

    name: str | None
    bridge: str
    mtu: int
    macs: tuple[str, ...]
    addresses: tuple[str, ...]


def rules(**options: Unpack[Options]) -> Rules:
    name = options.get("name")
    return make_rules(
        tap=None if name is None else parse_tap(name),
        bridge=options.get("bridge"),
        mtu=options.get("mtu"),
        macs=list(map(parse_mac_rule, options.get("macs", ()))),
        addresses=list(map(parse_address_rule, options.get("addresses", ()))),
    )


def a_port(**options: Unpack[Options]) -> TapPort:
    """The port of an agent's only device."""
    return Ports(rules(**options), **NO_PACKETS).make("0000:00:05.0")


def test_port_has_the_devices_name_if_it_is_free(network: None) -> None:
    port = a_port()
    port.open(1, "net0")
    assert port.name == "net0"
    port.close()


@pytest.mark.parametrize("name", ["lo", "much too long a name", "a/b", ""])
def test_port_has_another_name_if_it_is_not(network: None, name: str) -> None:
    port = a_port()
    port.open(1, name)
    assert port.name == "vp0"
    port.close()


def test_port_has_the_name_that_the_user_wants(network: None) -> None:
    port = a_port(name="mine")
    port.open(1, "net0")
    assert port.name == "mine"
    port.close()


def mtu(name: str) -> int:
    """The MTU of an interface."""
    return int(json.loads(ip("-j", "link", "show", name))[0]["mtu"])


def mac(name: str) -> str:
    """The MAC of an interface."""
    return ip("link", "show", name).split("link/ether ")[1][:17]


def test_new_agent_has_the_same_mac(network: None) -> None:
    macs = []
    for _ in range(2):
        port = a_port()
        port.open(1, "net0")
        macs.append(mac("net0"))
        port.close()
    assert macs[0] == macs[1]


def test_tap_of_the_user_keeps_its_mac(network: None) -> None:
    ip("tuntap", "add", "mine", "mode", "tap")
    ip("link", "set", "mine", "address", "02:00:00:00:00:09")
    port = a_port(name="mine")
    port.open(1, "net0")
    assert "02:00:00:00:00:09" in ip("link", "show", "mine")
    port.close()


def test_port_keeps_its_tap_until_the_queues_change(network: None) -> None:
    port = a_port(name="mine")
    assert opened(port, 1, "") == opened(port, 1, "")
    port.set_options(options(0))
    assert len(opened(port, 2, "")) == 2
    port.close()


def test_packets_go_to_queues_that_are_used_and_no_others(network: None) -> None:
    port = a_port(name="mine", addresses=("192.0.2.1/24",))
    fds = opened(port, 4, "")
    port.set_carrier(True)
    assert eventually(lambda: is_sent_to(fds)), "the kernel has seen the cable"
    try:
        for pairs in ({0, 1, 2, 3}, {0}, {0, 2}, {0}, {0, 1, 2, 3}):
            port.use_queues(pairs)
            drained(fds)
            send_from_many_ports()
            assert drained(fds) == pairs
    finally:
        port.close()


def test_queues_of_a_tap_that_is_deleted_say_so(network: None) -> None:
    port = a_port(name="mine")
    port.open(2, "")
    ip("link", "del", "mine")
    with pytest.raises(Unusable, match="another program deleted it"):
        port.use_queues(set())
    port.close()


@pytest.mark.parametrize("emptied", [0, 1])
def test_emptied_queue_has_no_packet_and_the_others_keep_theirs(
    network: None, emptied: int
) -> None:
    port = a_port(name="mine", addresses=("192.0.2.1/24",))
    fds = opened(port, 2, "")
    port.set_carrier(True)
    assert eventually(lambda: is_sent_to(fds)), "the kernel has seen the cable"
    port.use_queues({0, 1})
    send_from_many_ports()
    port.discard(emptied)
    assert drained(fds) == {1 - emptied}
    port.close()


def test_queue_that_fills_all_the_time_is_not_emptied_without_end(
    network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = a_port()
    port.open(1, "net0")
    reads = 0

    def read(_fd: int, _size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 1_000_000
        return b"packet"

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        port.discard(0)
    # The kernel's queue has 1000 packets; the user may have made it longer.
    assert reads >= 1000
    port.close()


def test_queue_of_a_tap_that_is_deleted_is_not_taken_for_empty(network: None) -> None:
    port = a_port(name="mine")
    port.open(1, "")
    ip("link", "del", "mine")
    with pytest.raises(Unusable, match="another program deleted it"):
        port.discard(0)
    port.close()


def test_mac_that_another_program_overwrites_at_the_start_is_set_once_more(
    network: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As udev does, which has read that the MAC is random before the agent set it."""
    port = a_port(macs=("02:00:00:00:00:09",))
    port.open(1, "net0")
    port.follow_mac()
    ip("link", "set", "net0", "address", "02:00:00:00:00:66")
    port.follow_mac()
    assert mac("net0") == "02:00:00:00:00:09"
    assert "changed the MAC to 02:00:00:00:00:66" in caplog.text
    ip("link", "set", "net0", "address", "02:00:00:00:00:77")  # the user means it
    port.follow_mac()
    assert mac("net0") == "02:00:00:00:00:77"
    port.close()


def test_mac_that_is_changed_later_stays(network: None) -> None:
    port = a_port()
    port.open(1, "net0")
    for _ in range(300):
        port.follow_mac()
    ip("link", "set", "net0", "address", "02:00:00:00:00:77")
    port.follow_mac()
    assert mac("net0") == "02:00:00:00:00:77"
    port.close()


def send_from_many_ports() -> None:
    """Send datagrams of so many flows that each queue gets some."""
    for _ in range(200):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"", ("192.0.2.255", 9))


def is_sent_to(fds: tuple[int, ...]) -> bool:
    """Whether packets come: a moment after the carrier, not with it."""
    send_from_many_ports()
    return bool(drained(fds))


def drained(fds: tuple[int, ...]) -> set[int]:
    """Take all packets; return the queues that had any."""
    found = set()
    for index, fd in enumerate(fds):
        with suppress(BlockingIOError):
            while os.read(fd, 1 << 16):
                found.add(index)
    return found


def test_port_follows_the_masters_mtu(network: None) -> None:
    port = a_port()
    port.open(1, "net0")
    port.follow_mtu(1400)
    assert mtu("net0") == 1400
    port.close()


def test_next_tap_gets_the_masters_mtu_too(network: None) -> None:
    port = a_port()
    for _ in range(2):
        port.open(1, "net0")
        port.follow_mtu(1400)
        assert mtu("net0") == 1400
        port.close()


def test_next_master_that_is_told_no_mtu_finds_the_mtu_as_it_was(
    network: None,
) -> None:
    ip("tuntap", "add", "mine", "mode", "tap")
    ip("link", "set", "mine", "mtu", "1700")
    port = a_port(name="mine")
    port.open(1, "net0")
    port.follow_mtu(0)
    for told in (1400, 9000, 0):
        port.follow_mtu(told)
    assert mtu("mine") == 1700
    port.follow_mtu(1300)
    port.follow_mtu(0)
    assert mtu("mine") == 1700
    port.close()


def test_mtu_that_the_user_has_changed_since_stays(network: None) -> None:
    port = a_port()
    port.open(1, "net0")
    port.follow_mtu(1400)
    ip("link", "set", "net0", "mtu", "1600")
    port.follow_mtu(0)
    assert mtu("net0") == 1600
    port.close()


@pytest.mark.parametrize("limit", [68, 65521])
def test_port_takes_the_smallest_and_the_largest_mtu(network: None, limit: int) -> None:
    port = a_port()
    port.open(1, "net0")
    port.follow_mtu(limit)
    assert mtu("net0") == limit
    port.close()


def test_port_keeps_the_mtu_that_the_user_wants(network: None) -> None:
    port = a_port(mtu=9000)
    port.open(1, "net0")
    port.follow_mtu(1400)
    assert mtu("net0") == 9000
    port.close()


def test_impossible_mtu_of_the_master_is_said_and_left(
    network: None, caplog: pytest.LogCaptureFixture
) -> None:
    port = a_port()
    port.open(1, "net0")
    for _ in range(2):
        port.follow_mtu(65535)
    assert mtu("net0") == 1500
    assert caplog.text.count("MTU 65535") == 1
    port.close()


# Several devices.


@pytest.fixture
def two(network: None) -> Iterator[Callable[..., tuple[TapPort, TapPort]]]:
    """Make the ports of an agent's two devices by the same rules."""
    with ExitStack() as undo:

        def make(**options: Unpack[Options]) -> tuple[TapPort, TapPort]:
            ports = Ports(rules(**options), **NO_PACKETS)
            first, second = ports.make("0000:00:05.0"), ports.make("0000:00:06.0")
            undo.callback(first.close)
            undo.callback(second.close)
            return first, second

        yield make


Two = Callable[..., tuple[TapPort, TapPort]]


@pytest.mark.parametrize(
    ("template", "names"),
    [
        (None, ("net0", "net1")),
        ("{name}x", ("net0x", "net1x")),
        ("vp{n}", ("vp0", "vp1")),
        ("vp%d", ("vp0", "vp1")),
    ],
)
def test_each_device_has_a_tap_of_its_own(
    two: Two, template: str | None, names: tuple[str, str]
) -> None:
    first, second = two(name=template)
    first.open(1, "net0")
    second.open(1, "net1")
    assert (first.name, second.name) == names


def test_devices_of_one_name_have_taps_of_their_own(two: Two) -> None:
    first, second = two()
    first.open(1, "net0")
    second.open(1, "net0")
    assert (first.name, second.name) == ("net0", "vp0")
    macs = [
        ip("link", "show", name).split("ether ")[1][:17] for name in ("net0", "vp0")
    ]
    assert macs[0] != macs[1]


@pytest.mark.parametrize(
    ("template", "names"), [("vp0", ("net0", "net1")), ("{name}", ("net0", "net0"))]
)
def test_template_that_gives_one_name_twice_is_the_seconds_trouble(
    two: Two, template: str, names: tuple[str, str]
) -> None:
    first, second = two(name=template)
    fds = opened(first, 1, names[0])
    with pytest.raises(Unusable) as refusal:
        second.open(1, names[1])
    said = str(refusal.value)
    for part in (
        f"0000:00:05.0 ('{names[0]}')",
        f"0000:00:06.0 ('{names[1]}')",
        f"--tap {template}",
        f"{first.name}, which",
        "as in --tap vp{n}",
    ):
        assert part in said
    first.check()
    assert opened(first, 1, names[0]) == fds


def test_name_is_free_when_its_device_is_gone(two: Two) -> None:
    first, second = two(name="vp0")
    first.open(1, "net0")
    first.close()
    second.open(1, "net1")
    assert second.name == "vp0"


def test_one_mac_for_two_devices_is_the_seconds_trouble(two: Two) -> None:
    first, second = two(macs=("02:00:00:00:00:01",))
    first.open(1, "net0")
    with pytest.raises(Unusable, match=r"--mac .* which 0000:00:05\.0 \('net0'\) has"):
        second.open(1, "net1")


def test_number_is_the_smallest_that_is_free(network: None) -> None:
    ports = Ports(rules(name="vp{n}"), **NO_PACKETS)
    made = [ports.make(f"0000:00:0{slot}.0") for slot in range(3)]
    for port in made:
        port.open(1, "")
    made[1].close()
    again = ports.make("0000:00:07.0")
    again.open(1, "")
    assert again.name == "vp1"
    for port in (*made, again):
        port.close()


def test_number_stays_when_the_queues_change(two: Two) -> None:
    first, second = two(name="vp{n}")
    first.open(1, "net0")
    second.open(1, "net1")
    first.close()
    second.open(2, "net1")
    assert second.name == "vp1"


def test_device_in_another_slot_keeps_its_mac(two: Two) -> None:
    macs = []
    for port in two():
        port.open(1, "net0")
        macs.append(mac("net0"))
        port.close()
    assert macs[0] == macs[1]


def test_devices_of_two_daemons_with_one_name_have_macs_of_their_own() -> None:
    """Whichever device comes first: each keeps its MAC."""
    macs = []
    for device in ("/run/one/net0.ivshmem", "/run/two/net0.ivshmem"):
        ports = Ports(rules(), **NO_PACKETS)
        ports.claims.take(device, "net0", ports.rules)
        macs.append(ports.claims.choose_mac(device, "net0"))
    assert macs[0] != macs[1]


# A bridge.


@pytest.fixture
def bridged(network: None) -> Iterator[TapPort]:
    """A port whose TAP, vp0, has joined bridge br0."""
    bridge = Bridge("br0")
    bridge.make()
    port = Ports(rules(name="vp0", bridge="br0"), **NO_PACKETS).make("0000:00:05.0")
    port.open(1, "net0")
    yield port
    port.close()


def state() -> str:
    """The state of vp0 as a port of br0; empty if it is none."""
    shown = json.loads(ip("-j", "-d", "link", "show", "vp0"))[0]
    if shown.get("master") != "br0":
        return ""
    return str(shown["linkinfo"]["info_slave_data"]["state"])


def test_tap_forwards_while_it_has_a_carrier(bridged: TapPort) -> None:
    assert state() == "disabled"
    bridged.set_carrier(True)
    assert eventually(lambda: state() == "forwarding")
    bridged.set_carrier(False)
    assert eventually(lambda: state() == "disabled")


def test_bridge_takes_the_smallest_mtu(bridged: TapPort) -> None:
    bridged.follow_mtu(1400)
    assert "mtu 1400" in ip("link", "show", "br0")


def test_tap_is_in_the_bridge_again_when_the_queues_change(bridged: TapPort) -> None:
    bridged.open(2, "net0")
    assert state()


def test_bridge_stays_when_the_last_tap_goes(bridged: TapPort) -> None:
    bridged.close()
    assert "br0" in ip("link")


def test_status_names_the_bridge_while_it_is_there(bridged: TapPort) -> None:
    assert bridged.bridge == "br0"
    ip("link", "delete", "br0")
    assert bridged.bridge is None


def test_status_names_no_bridge_when_the_user_has_taken_the_tap_out(
    bridged: TapPort,
) -> None:
    ip("link", "set", "vp0", "nomaster")
    assert bridged.bridge is None
    ip("link", "set", "vp0", "master", "br0")
    assert bridged.bridge == "br0"


def test_status_names_the_bridge_that_the_user_has_chosen(network: None) -> None:
    port = a_port()
    assert port.bridge is None
    port.open(1, "net0")
    assert port.bridge is None
    ip("link", "add", "lan", "type", "bridge")
    ip("link", "set", "net0", "master", "lan")
    assert port.bridge == "lan"
    ip("link", "set", "lan", "name", "wan")
    assert port.bridge == "wan"
    ip("link", "delete", "net0")
    assert port.bridge is None
    port.close()


def test_bridge_that_is_deleted_is_said_once_and_joined_again(
    bridged: TapPort, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ip("link", "del", "br0")
    for _ in range(3):
        bridged.follow_bridge()
    assert caplog.text.count("bridge br0 is gone: make it again") == 1
    ip("link", "add", "br0", "type", "bridge")
    for _ in range(3):
        bridged.follow_bridge()
    assert state()
    assert caplog.text.count("joined bridge br0 again") == 1


def test_what_comes_in_place_of_the_bridge_is_said_once(
    bridged: TapPort, caplog: pytest.LogCaptureFixture
) -> None:
    ip("link", "del", "br0")
    ip("tuntap", "add", "br0", "mode", "tap")
    for _ in range(3):
        bridged.follow_bridge()
    assert caplog.text.count("br0 is no bridge but tun") == 1


def test_tap_that_the_user_takes_out_stays_out(bridged: TapPort) -> None:
    ip("link", "set", "vp0", "nomaster")
    bridged.follow_bridge()
    assert not state()


def test_settings_of_a_device_that_is_away_wait_until_it_is_back(
    network: None,
) -> None:
    ports = Ports(rules(name="vp{n}"), **NO_PACKETS)
    away, other = ports.make("0000:00:05.0"), ports.make("0000:00:06.0")
    away.open(1, "net0")
    away.leave()
    ports.rules = rules(name="vp{n}", mtu=1300)
    change = away.change()
    assert (change.changed, change.problems) == ([], [])
    # Its number is still free: nothing was reserved for it.
    other.open(1, "net1")
    assert other.name == "vp0"
    other.close()
    away.close()
