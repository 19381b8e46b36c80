# SPDX-License-Identifier: Apache-2.0
"""The ports of devices when the file that has their settings is read again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.netns import ip
from tests.fakes.plane import FakePlane
from vhostpci_guest.cli.config_orders import ConfigOrders
from vhostpci_guest.cli.configuration import Configuration
from vhostpci_guest.cli.device_ports import DevicePort, DevicePorts
from vhostpci_guest.cli.separation import Helpers
from vhostpci_guest.config import file as config_file
from vhostpci_guest.config.settings import PlaneSettings
from vhostpci_guest.dataplane.vhost_user.sockets import LocalSockets
from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap.requests import LocalRequests
from vhostpci_guest.tap.tap_port import PlaneMaker, TapPort


class SceneHelpers(Helpers):
    """Helpers in this process, which follow the settings when they are told to."""

    def use_config(self) -> None:
        FOLLOW.pop()()


FOLLOW: list[Callable[[], None]] = []
"""What the next `use_config` does."""


class Scene:
    """An agent's ports, and its file."""

    def __init__(self, directory: Path, text: str, *, sockets: bool = True) -> None:
        self.file = directory / "guest.toml"
        self.file.write_text(text)
        orders = ConfigOrders(config_file.load(self.file), self.file)
        self.helpers = SceneHelpers(
            LocalRequests(), None, None, LocalSockets(orders) if sockets else None
        )
        self.orders = orders
        self.made: list[PlaneSettings] = []
        """What each data plane was made for."""
        self.lacks = ""
        """What the machine lacks for the data planes of a file that is read."""
        self.ports = DevicePorts(
            orders.settings, self.helpers, self.make_planes, confine=False
        )
        self.configuration = Configuration(self.file, self.ports, self.helpers)

    def make_planes(self, wanted: PlaneSettings) -> PlaneMaker:
        if self.lacks:
            raise Unusable(self.lacks)

        def make(port: TapPort, device: str) -> FakePlane:
            self.made.append(wanted)
            return FakePlane(port, device)

        return make

    def follow(self) -> None:
        self.orders.settings = config_file.load(self.file)

    def open(self, name: str) -> DevicePort:
        port = self.ports.make(f"device of {name}")
        port.open(1, name)
        return port

    def read(self, text: str) -> set[str]:
        """Read the file again; return the devices whose data plane is closed."""
        self.file.write_text(text)
        ports = self.configuration.read()
        FOLLOW[:] = [self.follow]
        return {port.name for port in ports if isinstance(port, DevicePort)}


def taps() -> set[str]:
    lines = ip("-br", "link").splitlines()
    return {line.split()[0] for line in lines} - {"lo"}


def test_device_moves_from_a_tap_to_a_socket_and_back(
    network: None, tmp_path: Path
) -> None:
    before = "[device.a]\n[device.b]"
    scene = Scene(tmp_path, before)
    a, b = scene.open("a"), scene.open("b")
    assert taps() == {"a", "b"}
    moved = f'[device.a]\ndata-plane = "vhost-user:{tmp_path}/s"\n[device.b]'
    assert scene.read(moved) == {"a"}
    assert scene.configuration.apply()["restarted"] == {"a": ["data-plane"]}
    assert taps() == {"b"}
    a.open(1, "a")
    assert (a.kind, b.kind) == ("vhost-user", "ring")
    assert (tmp_path / "s").is_socket()
    assert scene.read(before) == {"a"}
    scene.configuration.apply()
    a.open(1, "a")
    assert taps() == {"a", "b"}
    assert not (tmp_path / "s").exists()
    a.close()
    b.close()


def indexes() -> dict[str, int]:
    """Return the interface index of each TAP, by its name."""
    lines = ip("-o", "link").splitlines()
    return {one.split(": ")[1]: int(one.split(": ")[0]) for one in lines}


def test_two_devices_swap_names_macs_and_addresses(
    network: None, tmp_path: Path
) -> None:
    one = 'tap = "one"\nmac = "02:00:00:00:00:01"\naddress = "10.0.1.1/24"\n'
    two = 'tap = "two"\nmac = "02:00:00:00:00:02"\naddress = "10.0.2.1/24"\n'
    scene = Scene(tmp_path, f"[device.a]\n{one}[device.b]\n{two}")
    a, b = scene.open("a"), scene.open("b")
    before = indexes()
    scene.read(f"[device.a]\n{two}[device.b]\n{one}")
    report = scene.configuration.apply()
    assert report["failed"] == {}
    assert report["changed"]["a"] == report["changed"]["b"] == ["address", "tap", "mac"]
    after = indexes()
    # The same TAPs, each with all that the other had.
    assert (after["one"], after["two"]) == (before["two"], before["one"])
    for name, number in (("one", 1), ("two", 2)):
        assert f"02:00:00:00:00:0{number}" in ip("link", "show", name)
        assert f"10.0.{number}.1/24" in ip("address", "show", name)
    a.close()
    b.close()


def test_three_devices_take_each_others_names(network: None, tmp_path: Path) -> None:
    text = "".join(f'[device.{name}]\ntap = "{name}"\n' for name in "abc")
    scene = Scene(tmp_path, text)
    ports = [scene.open(name) for name in "abc"]
    before = indexes()
    pairs = zip("abc", "bca", strict=True)
    scene.read("".join(f'[device.{one}]\ntap = "{new}"\n' for one, new in pairs))
    assert scene.configuration.apply()["failed"] == {}
    after = indexes()
    assert [after[name] for name in "bca"] == [before[name] for name in "abc"]
    for port in ports:
        port.close()


def test_device_that_cannot_get_its_new_name_takes_the_old_one_again(
    network: None, tmp_path: Path
) -> None:
    text = "".join(f'[device.{name}]\ntap = "{name}"\n' for name in "ab")
    scene = Scene(tmp_path, text)
    a, b = scene.open("a"), scene.open("b")
    before = indexes()
    ip("link", "add", "taken", "type", "bridge")
    scene.read('[device.a]\ntap = "taken"\n[device.b]\ntap = "a"\n')
    failed = scene.configuration.apply()["failed"]
    assert "File exists" in failed["a"][0]
    assert "has already" in failed["b"][0] or "File exists" in failed["b"][0]
    after = indexes()
    assert (after["a"], after["b"]) == (before["a"], before["b"])
    # What was refused is tried again.
    ip("link", "del", "taken")
    scene.read('[device.a]\ntap = "taken"\n[device.b]\ntap = "a"\n')
    assert scene.configuration.apply()["failed"] == {}
    assert taps() == {"taken", "a"}
    a.close()
    b.close()


def test_device_keeps_its_tap_when_the_kernel_becomes_its_data_plane(
    network: None, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, "[device.a]\n[device.b]")
    a, b = scene.open("a"), scene.open("b")
    before = indexes()
    moved = '[device.a]\ndata-plane = "vhost-net"\n[device.b]'
    assert scene.read(moved) == {"a"}
    assert scene.configuration.apply()["restarted"] == {"a": ["data-plane"]}
    assert (a.kind, b.kind) == ("vhost-net", "ring")
    assert indexes() == before
    a.make_plane("a").close()
    assert [one.data_plane.kind for one in scene.made] == ["vhost-net"]
    a.close()
    b.close()


def test_kernel_that_has_no_vhost_net_leaves_a_device_as_it_was(
    network: None, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, "[device.a]")
    a = scene.open("a")
    scene.lacks = "no vhost-net here"
    with pytest.raises(Unusable, match="no vhost-net here"):
        scene.read('[device.a]\ndata-plane = "vhost-net"')
    assert (a.kind, taps()) == ("ring", {"a"})
    a.close()


def test_one_devices_refusal_does_not_keep_the_others_from_changing(
    network: None, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, "[device.a]\n[device.b]")
    a, b = scene.open("a"), scene.open("b")
    ip("link", "add", "taken", "type", "bridge")
    wanted = '[device.a]\ntap = "taken"\nmtu = 1300\n[device.b]\nmtu = 1400'
    assert scene.read(wanted) == set()
    report = scene.configuration.apply()
    assert report["changed"] == {"a": ["mtu"], "b": ["mtu"]}
    assert "File exists" in report["failed"]["a"][0]
    assert "mtu 1300" in ip("link", "show", "a")
    assert "mtu 1400" in ip("link", "show", "b")
    # What was refused is tried again.
    ip("link", "del", "taken")
    scene.read(wanted)
    assert scene.configuration.apply()["failed"] == {}
    assert taps() == {"taken", "b"}
    a.close()
    b.close()


def test_first_socket_needs_a_new_agent(network: None, tmp_path: Path) -> None:
    scene = Scene(tmp_path, "", sockets=False)
    with pytest.raises(Unusable, match="data-plane vhost-user is new: restart"):
        scene.read(f'[device.a]\ndata-plane = "vhost-user:{tmp_path}/s"')


def test_port_without_a_name_yet_has_the_status_of_no_tap(
    network: None, tmp_path: Path
) -> None:
    port = Scene(tmp_path, "").ports.make("0000:00:05.0")
    assert port.status()["tap"] is None
    assert (port.kind, port.carrier, port.idle) == ("ring", False, True)
