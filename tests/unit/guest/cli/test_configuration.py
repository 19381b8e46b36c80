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
from vhostpci_guest.dataplane.vhost_user.sockets import LocalSockets
from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap.requests import LocalRequests


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
        self.ports = DevicePorts(
            orders.settings, self.helpers, lambda _wanted: FakePlane, confine=False
        )
        self.configuration = Configuration(self.file, self.ports, self.helpers)

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
