# SPDX-License-Identifier: Apache-2.0
"""The rounds of the part with VMs, without VMs."""

from functools import partial

import pytest

from tests.bench import two_vms
from tests.bench.parts import vm
from tests.bench.parts.vm import Round, Scale
from tests.bench.plan import Plan
from tests.bench.two_vms import FIRST, SECOND, card_args, cards


def test_every_contender_has_its_turn_in_each_round_and_is_compared() -> None:
    turns: list[str] = []

    def measure(name: str, rate: float) -> Round:
        turns.append(name)
        return Round(ping=1000 / rate, tcp_from=rate, tcp_to=2 * rate, udp=3 * rate)

    rates = {"vfio": 200.0, "kmod": 300.0, "-netdev tap": 400.0, "-netdev socket": 50.0}
    found = vm.measure_rounds(
        3, {name: partial(measure, name, rate) for name, rate in rates.items()}
    )
    assert turns == [*rates, *reversed(rates), *rates]
    assert len(found) == 2 * 2 * 4
    ratios = {figure.name: figure.ratio for figure in found}
    assert ratios["kmod, TCP to the master, beside -netdev tap"] == pytest.approx(0.75)
    assert ratios["vfio, ping, beside -netdev socket"] == pytest.approx(0.25)
    assert {figure.better for figure in found if "ping" in figure.name} == {"lower"}


def test_kmod_is_compared_with_sysfs_only_where_there_are_caches() -> None:
    with_caches, emulated = (
        Scale.of(Plan(), kvm=kvm).bindings for kvm in (True, False)
    )
    assert vm.pairs([*with_caches, "-netdev tap"])[-1] == ("kmod", "sysfs")
    assert vm.pairs([*emulated, "-netdev tap"]) == [
        ("vfio", "-netdev tap"),
        ("kmod", "-netdev tap"),
    ]
    quick = Scale.of(Plan(quick=True), kvm=True)
    assert ("kmod", "sysfs") in vm.pairs(quick.bindings)


def test_each_way_has_two_ends_of_one_network() -> None:
    firsts, seconds = cards(FIRST), cards(SECOND)
    for one, other in zip(firsts, seconds, strict=True):
        assert one.kind == other.kind
        assert one.address.rpartition(".")[0] == other.address.rpartition(".")[0]
    assert [card.interface for card in firsts] == ["eth1", "eth2", "eth3"]
    assert [card.interface for card in seconds] == ["eth0", "eth1", "eth2"]
    args = " ".join([*card_args(FIRST), *card_args(SECOND)])
    macs = [word for word in args.replace(" ", ",").split(",") if word[:4] == "mac="]
    assert len(set(macs)) == len(macs) == 6
    for left, right in (("listen=", "connect="), ("server=on", "server=off")):
        assert args.count(left) == args.count(right) == 1


@pytest.mark.parametrize("vhost", [False, True])
def test_peer_is_vhost_net_where_there_is_one_and_is_named_so(
    monkeypatch: pytest.MonkeyPatch, vhost: bool
) -> None:
    monkeypatch.setattr(two_vms, "vhost", lambda: vhost)
    assert [",vhost=on" in word for word in card_args(FIRST)[1::4]] == [
        vhost,
        False,
        False,
    ]
    assert two_vms.peer_name("tap") == "-netdev tap" + ",vhost=on" * vhost
    assert two_vms.peer_name("socket") == "-netdev socket"
