# SPDX-License-Identifier: Apache-2.0
"""A TAP that another program renames, moves or deletes while the agent has it."""

import json
from collections.abc import Iterator

import pytest

from tests.fakes.netns import ip
from tests.fakes.plane import NO_PACKETS
from tests.vm.netns import Namespace
from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap.bridge import Bridge
from vhostpci_guest.tap.naming import Rules, parse_tap
from vhostpci_guest.tap.settings import TapConfig, parse_address
from vhostpci_guest.tap.tap import Tap
from vhostpci_guest.tap.tap_port import Ports, TapPort

pytestmark = pytest.mark.usefixtures("network")


@pytest.fixture
def tap() -> Iterator[Tap]:
    """A TAP that was made as vp0, and is eth7 now; another interface is vp0."""
    made = Tap("vp0", 2)
    ip("link", "set", "vp0", "name", "eth7")
    ip("link", "add", "vp0", "type", "bridge")
    yield made
    made.close()


@pytest.fixture
def elsewhere() -> Iterator[Namespace]:
    """Another network namespace."""
    with Namespace() as namespace:
        yield namespace


def move(name: str, namespace: Namespace) -> None:
    """Move an interface to another network namespace."""
    ip("link", "set", name, "netns", namespace.prefix[1].removeprefix("--net="))


def link(name: str, namespace: Namespace | None = None) -> dict[str, object]:
    """What ip(8) says of an interface."""
    words = ("-j", "link", "show", name)
    shown = ip(*words) if namespace is None else namespace.output("ip", *words)
    found: dict[str, object] = json.loads(shown)[0]
    return found


def test_renamed_tap_knows_its_name(tap: Tap) -> None:
    assert tap.name == "eth7"
    ip("link", "set", "eth7", "name", "eth8")
    assert tap.name == "eth8"


def test_renamed_tap_is_set_up_and_the_new_owner_of_its_name_is_not(tap: Tap) -> None:
    before = link("vp0")
    config = TapConfig(
        mac="02:00:00:00:00:07", mtu=9000, addresses=(parse_address("10.0.0.1/24"),)
    )
    tap.configure(config)
    assert (link("eth7")["mtu"], tap.mtu) == (9000, 9000)
    assert "10.0.0.1/24" in ip("addr", "show", "eth7")
    assert link("vp0") == before


def test_moved_tap_is_found_where_it_is(tap: Tap, elsewhere: Namespace) -> None:
    assert not tap.moved
    move("eth7", elsewhere)
    ip("link", "add", "eth7", "type", "bridge")
    assert tap.moved
    tap.set_mtu(9000)
    assert tap.mtu == 9000
    assert link("eth7", elsewhere)["mtu"] == 9000
    assert link("eth7")["mtu"] == 1500


def test_moved_tap_does_not_join_a_bridge_here(tap: Tap, elsewhere: Namespace) -> None:
    bridge = Bridge("br0")
    bridge.make()
    move("eth7", elsewhere)
    with pytest.raises(Unusable, match="moved to another network namespace"):
        bridge.join(tap)


def test_deleted_tap_says_so_whatever_it_is_asked(tap: Tap) -> None:
    bridge = Bridge("br0")
    bridge.make()
    ip("link", "del", "eth7")
    for ask in (
        tap.check,
        tap.index,
        lambda: tap.mtu,
        lambda: tap.mac,
        lambda: tap.set_mtu(9000),
        lambda: tap.discard(1),
        lambda: tap.configure(TapConfig(addresses=(parse_address("10.0.0.1/24"),))),
        lambda: bridge.join(tap),
    ):
        with pytest.raises(Unusable, match="another program deleted it"):
            ask()


def test_name_of_a_closed_tap_is_its_last_one(tap: Tap) -> None:
    tap.close()
    assert tap.name == "eth7"


@pytest.fixture
def bridged() -> Iterator[TapPort]:
    """A port whose TAP, vp0, has joined bridge br0."""
    bridge = Bridge("br0")
    bridge.make()
    rules = Rules(tap=parse_tap("vp0"), bridge="br0")
    port = Ports(rules, **NO_PACKETS).make("0000:00:05.0")
    port.open(1, "net0")
    ip("link", "set", "vp0", "down")
    ip("link", "set", "vp0", "name", "eth7")
    yield port
    port.close()


def make_bridge_again() -> None:
    ip("link", "del", "br0")
    ip("link", "add", "br0", "type", "bridge")


def test_renamed_tap_joins_the_bridge_that_is_made_again(bridged: TapPort) -> None:
    make_bridge_again()
    bridged.follow_bridge()
    assert link("eth7")["master"] == "br0"
    assert bridged.name == "eth7"


def test_moved_tap_and_a_bridge_that_is_made_again_end_nothing(
    bridged: TapPort, elsewhere: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    move("eth7", elsewhere)
    make_bridge_again()
    bridged.follow_bridge()
    bridged.follow_bridge()
    assert caplog.text.count("TAP eth7 was moved to another network namespace") == 1
    assert bridged.bridge is None


def test_moved_tap_may_be_in_a_bridge_of_its_namespace(
    bridged: TapPort, elsewhere: Namespace
) -> None:
    move("eth7", elsewhere)
    elsewhere.run("ip link add lan type bridge")
    elsewhere.run("ip link set eth7 master lan")
    assert bridged.bridge == "lan"


def test_old_name_of_a_renamed_tap_is_free_for_another_device() -> None:
    ports = Ports(Rules(tap=parse_tap("vp0")), **NO_PACKETS)
    first, second = ports.make("0000:00:05.0"), ports.make("0000:00:06.0")
    first.open(1, "net0")
    ip("link", "set", "vp0", "down")
    ip("link", "set", "vp0", "name", "eth7")
    first.check()
    second.open(1, "net1")
    assert (first.name, second.name) == ("eth7", "vp0")
    first.close()
    second.close()


def test_port_of_a_renamed_tap_follows_the_masters_mtu(bridged: TapPort) -> None:
    bridged.follow_mtu(1400)
    assert link("eth7")["mtu"] == 1400
    bridged.follow_mtu(0)
    assert link("eth7")["mtu"] == 1500
