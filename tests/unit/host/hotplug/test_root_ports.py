# SPDX-License-Identifier: Apache-2.0
"""A window goes to the smallest root port with room for it."""

from typing import Any

import pytest

from vhostpci_host.hotplug import root_ports
from vhostpci_host.hotplug.root_ports import RootPort

MIB, GIB = 2**20, 2**30


def port(
    name: str,
    share: int,
    *,
    base: int = 4 * GIB,
    ready: bool = True,
    taken: bool = False,
) -> RootPort:
    return RootPort(
        name=name, base=base, limit=base + share - 1, ready=ready, taken=taken
    )


def names(ports: list[RootPort]) -> list[str]:
    return [port.name for port in ports]


def test_smallest_port_that_is_large_enough_comes_first() -> None:
    ports = [port("large", 8 * GIB), port("small", 2 * MIB), port("fits", 4 * GIB)]
    assert names(root_ports.best(ports, 4 * GIB)) == ["fits", "large"]
    assert names(root_ports.best(ports, 64 * 1024))[0] == "small"


def test_port_that_is_taken_or_not_set_up_is_not_offered() -> None:
    ports = [port("taken", GIB, taken=True), port("not yet", GIB, ready=False)]
    assert root_ports.best(ports, MIB) == []


@pytest.mark.parametrize(("base", "fits"), [(4 * GIB, True), (5 * GIB, False)])
def test_bar_needs_a_multiple_of_its_size(base: int, fits: bool) -> None:
    assert port("port", 2 * GIB, base=base).fits(2 * GIB) is fits


def test_range_that_is_one_byte_too_short_for_a_window_does_not_fit() -> None:
    assert port("port", GIB).fits(GIB)
    assert not port("port", GIB - 1).fits(GIB)


def test_port_without_a_share_fits_nothing() -> None:
    """Before firmware has run, a root port's base is above its limit."""
    nothing = RootPort(
        name="p", base=0xFFF00000, limit=0xFFFFF, ready=True, taken=False
    )
    assert not nothing.fits(64 * 1024)
    assert nothing.share == 0


def bridge(
    name: str, behind: list[Any], share: dict[str, int] | None = None
) -> dict[str, Any]:
    share = share or {"base": 4 * GIB, "limit": 5 * GIB - 1}
    return {
        "qdev_id": name,
        "class_info": {"class": 0x0604},
        "regions": [],
        "pci_bridge": {
            "bus": {"secondary": 1, "prefetchable_range": share},
            "devices": behind,
        },
    }


def card(name: str, address: int) -> dict[str, Any]:
    return {
        "qdev_id": name,
        "class_info": {"class": 0x0500},
        "regions": [{"bar": 1, "address": -1}, {"bar": 2, "address": address}],
    }


def test_ports_behind_a_switch_are_found_and_other_bridges_are_not() -> None:
    tree = [{"devices": [bridge("up", [bridge("down", []), bridge("old", [])])]}]
    types = {"up": "x3130-upstream", "down": "xio3130-downstream", "old": "pci-bridge"}
    assert names(root_ports.find(tree, types)) == ["down"]


def test_port_with_a_device_behind_it_is_taken() -> None:
    tree = [{"devices": [bridge("a", [card("x", 0)]), bridge("b", [])]}]
    types = dict.fromkeys("ab", "pcie-root-port")
    assert [port.taken for port in root_ports.find(tree, types)] == [True, False]


def test_device_whose_window_has_no_address_is_found_behind_a_port() -> None:
    tree = [{"devices": [bridge("a", [card("x", -1)]), card("y", 4 * GIB)]}]
    assert root_ports.unassigned(tree) == {"x": ""}


@pytest.mark.parametrize("base", [0xFD_0000_0000, 0xFF_FFF0_0000])
def test_port_among_what_is_reserved_for_amd_is_the_reason(base: int) -> None:
    port = bridge("vp1", [card("x", -1)], {"base": base, "limit": (1 << 40) - 1})
    (why,) = root_ports.unassigned([{"devices": [port]}]).values()
    assert f"root port vp1 at {base:x}" in why
    assert "-global x86_64-cpu.phys-bits=39" in why


@pytest.mark.parametrize("base", [4 * GIB, 0xFC_FFF0_0000, 1 << 40])
def test_port_elsewhere_is_no_reason(base: int) -> None:
    port = bridge("vp1", [card("x", -1)], {"base": base, "limit": base + GIB})
    assert root_ports.unassigned([{"devices": [port]}]) == {"x": ""}
