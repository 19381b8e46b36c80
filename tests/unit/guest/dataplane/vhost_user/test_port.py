# SPDX-License-Identifier: Apache-2.0
"""The socket of a device, which outlives its data planes."""

from pathlib import Path

import pytest

from tests.fakes.back_end import FakeBackEnd
from vhostpci_guest.dataplane.call_thread import CallThread
from vhostpci_guest.dataplane.vhost_user.place import Place
from vhostpci_guest.dataplane.vhost_user.port import SocketPorts
from vhostpci_guest.dataplane.vhost_user.sockets import LocalSockets
from vhostpci_guest.errors import Unusable


def ports_at(template: Path, *, listens: bool = True) -> SocketPorts:
    place = Place(str(template), listens=listens)
    return SocketPorts(
        place, LocalSockets(place), lambda name: CallThread(name, confine=False)
    )


def test_each_device_has_its_own_socket(tmp_path: Path) -> None:
    ports = ports_at(tmp_path / "{name}.sock")
    made = [ports.make(f"0000:00:0{n}.0") for n in range(2)]
    for n, port in enumerate(made):
        port.open(1, f"net{n}")
        assert port.status()["socket"] == str(tmp_path / f"net{n}.sock")
    for port in made:
        port.close()
        port.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listens", [True, False])
def test_two_devices_at_one_path_are_refused(tmp_path: Path, listens: bool) -> None:
    ports = ports_at(tmp_path / "s", listens=listens)
    first, second = ports.make("0000:00:05.0"), ports.make("0000:00:06.0")
    first.open(1, "net0")
    with pytest.raises(Unusable, match=r"the device 0000:00:05\.0 has the socket"):
        second.open(1, "net1")
    # Once the first one is gone, the second may have it.
    first.leave()
    second.open(1, "net1")
    second.close()


def test_path_that_is_taken_is_free_for_this_device_later(tmp_path: Path) -> None:
    ports = ports_at(tmp_path / "s")
    (tmp_path / "s").write_text("")
    port = ports.make("0000:00:05.0")
    with pytest.raises(Unusable):
        port.open(1, "net0")
    (tmp_path / "s").unlink()
    other = ports.make("0000:00:06.0")
    other.open(1, "net1")
    other.close()


def test_socket_stays_for_the_next_data_plane(tmp_path: Path) -> None:
    port = ports_at(tmp_path / "s").make("0000:00:05.0")
    for pairs in (1, 2):
        port.open(pairs, "net0")
        plane = port.make_plane("net0")
        back_end = FakeBackEnd.connect(tmp_path / "s")
        back_end.queue_pairs = 1
        for _ in range(6):
            plane.look()
            back_end.serve()
        plane.look()
        # The number of pairs is that of the plane.
        assert bool(plane.waiting) == (pairs == 2)
        plane.close()
        back_end.close()
    port.close()


def test_port_notes_what_it_is_told(tmp_path: Path) -> None:
    port = ports_at(tmp_path / "s").make("0000:00:05.0")
    port.open(1, "net0")
    port.follow_mtu(9000)
    port.set_carrier(True)
    assert port.status()["carrier"]
    port.close()
    assert not port.carrier


def test_two_agents_at_one_path(tmp_path: Path) -> None:
    first = ports_at(tmp_path / "s").make("/run/a")
    first.open(1, "net0")
    with pytest.raises(Unusable, match="another process listens"):
        ports_at(tmp_path / "s").make("/run/b").open(1, "net0")
    first.close()
