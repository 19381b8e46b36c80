# SPDX-License-Identifier: Apache-2.0
"""Which bridge an interface is in; test_tap_port.py has it with real bridges."""

import struct

import pytest

from vhostpci_guest.tap.membership import bridge_name, bridge_of

IFNAME, LINKINFO, INFO_KIND = 3, 18, 1
NESTED = 0x8000


@pytest.mark.parametrize(
    ("kind", "name"),
    [(b"bridge\0", "br0"), (b"bond\0", None), (b"vrf\0", None), (b"", None)],
)
def test_only_a_bridge_is_named(kind: bytes, name: str | None) -> None:
    """A kernel may lack bonds and VRFs, so here is what it would say of them."""
    info = attribute(INFO_KIND, kind)
    assert bridge_name({IFNAME: b"br0\0", LINKINFO: info}) == name


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute as the kernel writes it: aligned to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_attribute_after_one_of_any_length_is_found() -> None:
    kind = attribute(INFO_KIND, b"bridge\0")
    for size in range(9):
        info = attribute(7, bytes(size)) + kind
        assert bridge_name({IFNAME: b"br0\0", LINKINFO: info}) == "br0"


def test_attribute_that_is_cut_off_is_left_out() -> None:
    info = attribute(INFO_KIND, b"bridge\0") + b"\x08\0\1"
    assert bridge_name({IFNAME: b"br0\0", LINKINFO: info}) == "br0"


@pytest.mark.parametrize("size", [0, 3])
def test_attribute_that_is_shorter_than_its_header_is_an_error(size: int) -> None:
    info = struct.pack("=HH", size, INFO_KIND)
    with pytest.raises(OSError, match=f"an attribute of {size} bytes"):
        bridge_name({IFNAME: b"br0\0", LINKINFO: info})


def test_attribute_with_the_flag_of_those_that_hold_others_is_found() -> None:
    info = attribute(NESTED | INFO_KIND, b"bridge\0")
    assert bridge_name({IFNAME: b"br0\0", LINKINFO: info}) == "br0"


def test_interface_of_no_kind_is_no_bridge() -> None:
    assert bridge_name({IFNAME: b"eth0\0"}) is None


def test_interface_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match="No such device"):
        bridge_of(0x7FFFFFFF)
