# SPDX-License-Identifier: Apache-2.0
"""A real TAP, where the machine has TAPs."""

import errno
import os
import select
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.netns import ip
from tests.fakes.plane import NO_PACKETS
from tests.waiting import eventually
from vhostpci_guest.errors import Unusable
from vhostpci_guest.net_options import Offload
from vhostpci_guest.serve.features import options
from vhostpci_guest.tap import tap
from vhostpci_guest.tap.naming import Rules
from vhostpci_guest.tap.requests import LocalRequests
from vhostpci_guest.tap.settings import TapConfig, parse_address
from vhostpci_guest.tap.tap import Tap
from vhostpci_guest.tap.tap_port import Ports

LINUX = tuple(map(int, os.uname().release.split(".")[:2]))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TUNSETIFF", 0x400454CA),
        ("TUNSETOFFLOAD", 0x400454D0),
        ("TUNGETIFF", 0x800454D2),
        ("TUNSETVNETHDRSZ", 0x400454D8),
        ("TUNSETQUEUE", 0x400454D9),
        ("TUNSETCARRIER", 0x400454E2),
    ],
)
def test_ioctl_number_is_the_kernels(name: str, number: int) -> None:
    assert getattr(tap, name) == number


def test_missing_node_is_explained(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="modprobe tun"):
        Tap("vp0", 1, requests=LocalRequests(tmp_path / "tun"))


def test_tap_is_as_it_was_asked_for(network: None) -> None:
    made = Tap("vp%d", 1)
    config = TapConfig(
        mac="02:00:00:00:00:07",
        mtu=9000,
        addresses=tuple(map(parse_address, ("10.0.0.1/24", "fd00::1/64"))),
    )
    made.configure(config)
    shown = ip("addr", "show", made.name)
    made.close()
    assert made.name == "vp0"
    for part in ("02:00:00:00:00:07", "mtu 9000", "10.0.0.1/24", "fd00::1/64", ",UP"):
        assert part in shown
    assert "vp0" not in ip("link")


def test_carrier_is_off_until_it_is_set(network: None) -> None:
    made = Tap("vp0", 1)
    made.configure(TapConfig())
    assert "NO-CARRIER" in ip("link", "show", "vp0")
    made.set_carrier(True)
    assert "LOWER_UP" in ip("link", "show", "vp0")
    made.close()


class Attaching(LocalRequests):
    """It notes whether the TAP has its carrier just after each time we attach to it."""

    def __init__(self) -> None:
        super().__init__()
        self.carriers: list[bool] = []

    def attach(self, name: str, flags: int) -> tuple[int, str]:
        """Attach, and look."""
        attached = super().attach(name, flags)
        self.carriers.append("NO-CARRIER" not in ip("link", "show", name))
        return attached


def test_tap_that_stayed_has_no_carrier_while_it_is_attached_to(network: None) -> None:
    """The kernel would take packets, which are thrown away when the rings start."""
    ip("tuntap", "add", "vp0", "mode", "tap", "multi_queue")
    ip("link", "set", "vp0", "up")
    requests = Attaching()
    Tap("vp0", 2, requests=requests).close()
    assert requests.carriers == [LINUX < (6, 1)] * 2


def test_tap_is_idle_when_it_is_empty_and_the_kernel_has_seen_the_carrier_go(
    network: None,
) -> None:
    made = Tap("vp0", 1)
    made.configure(TapConfig())  # the kernel sends some packets of IPv6
    made.set_carrier(True)
    assert eventually(lambda: bool(select.select(made.fds, [], [], 0)[0]))
    made.set_carrier(False)
    assert eventually(lambda: ",UP> " in ip("link", "show", "vp0"))
    time.sleep(0.1)
    assert not made.idle
    made.discard(0)
    assert eventually(lambda: made.idle)
    made.close()


def test_kernel_sends_nothing_more_once_it_has_said_so(network: None) -> None:
    """It turns queues off once a second, and Linux 6.8 also when it is asked."""
    made = Tap("vp0", 1)
    made.configure(TapConfig())
    requests = LocalRequests()
    for _ in range(3):
        made.set_carrier(True)
        assert eventually(lambda: requests.sends(made.fds[0]))
        made.set_carrier(False)
        if LINUX < (6, 8):
            assert eventually(lambda: not requests.sends(made.fds[0]))
        assert not requests.sends(made.fds[0])
    made.close()


def test_header_and_offloads_can_be_set(network: None) -> None:
    made = Tap("vp0", 1)
    made.check()
    made.set_header_length(12)
    made.set_offloads(Offload(15))
    made.close()


def test_kernel_knows_udp_packets_with_gso_from_linux_6_2_on(network: None) -> None:
    made = Tap("vp0", 1)
    assert made.takes_uso == (LINUX >= (6, 2))
    made.close()


@pytest.mark.parametrize("known", [True, False], ids=["since 6.2", "before 6.2"])
def test_offloads_are_those_that_the_kernel_knows_and_that_are_asked_for(
    network: None, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """An older kernel refuses all of them if one is unknown."""
    now = [Offload(0)]

    def set_offloads(_: Tap, offloads: Offload) -> None:
        if offloads & Offload.USO and not known:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        now.append(offloads)

    monkeypatch.setattr(Tap, "set_offloads", set_offloads)
    port = Ports(Rules(), **NO_PACKETS).make("0000:00:05.0")
    port.open(1, "net0")
    assert now[-1] == Offload(0)
    assert port.takes_uso == known
    offloads = Offload.CSUM | Offload.TSO4 | Offload.USO
    port.set_options(replace(options(0), offloads=offloads))
    assert now[-1] == (offloads if known else Offload.CSUM | Offload.TSO4)
    port.close()


def test_tap_with_two_queues_has_two_descriptors(network: None) -> None:
    made = Tap("vp0", 2)
    assert len(set(made.fds)) == 2
    assert "multi_queue" in ip("-d", "link", "show", "vp0")
    made.close()


@pytest.mark.parametrize(
    ("name", "queues", "why"),
    [
        ("busy", 1, "another process has it"),
        ("lo", 1, "is no TAP but a card"),
        ("br0", 1, "is no TAP but bridge"),
        ("busy", 2, "is no TAP with multi_queue"),
    ],
)
def test_name_in_use_is_explained(
    network: None, name: str, queues: int, why: str
) -> None:
    other = Tap("busy", 1)
    ip("link", "add", "br0", "type", "bridge")
    with pytest.raises(Unusable, match=f"TAP {name} exists, and {why}"):
        Tap(name, queues)
    other.close()


def test_tap_of_the_user_is_used_and_stays(network: None) -> None:
    ip("tuntap", "add", "mine", "mode", "tap")
    ip("addr", "add", "10.0.0.1/24", "dev", "mine")
    taken = Tap("mine", 1)
    taken.configure(TapConfig(addresses=(parse_address("10.0.0.1/24"),)))
    taken.close()
    assert not taken.made
    assert "10.0.0.1/24" in ip("addr", "show", "mine")


def test_tap_that_somebody_deletes_is_gone(network: None) -> None:
    made = Tap("vp0", 1)
    ip("link", "del", "vp0")
    with pytest.raises(Unusable, match="another program deleted it"):
        made.check()
    made.close()


def test_what_the_kernel_refuses_is_explained(network: None) -> None:
    made = Tap("vp0", 1)
    with pytest.raises(Unusable, match="refuses MTU 70000"):
        made.set_mtu(70000)
    made.close()
