# SPDX-License-Identifier: Apache-2.0
"""Which bridge an interface is in; test_tap_port.py has it with real bridges."""

import struct

import pytest

from vhostpci_guest.tap.membership import bridge_name, bridge_of

IFNAME, LINKINFO, INFO_KIND = 3, 18, 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [(b"bridge\0", "br0"), (b"bond\0", None), (b"vrf\0", None), (b"", None)],
)
def test_only_a_bridge_is_named(kind: bytes, name: str | None) -> None:
    """A kernel may lack bonds and VRFs, so here is what it would say of them."""
    padding = bytes(-len(kind) % 4)
    info = struct.pack("=HH", 4 + len(kind), INFO_KIND) + kind + padding
    assert bridge_name({IFNAME: b"br0\0", LINKINFO: info}) == name


def test_interface_of_no_kind_is_no_bridge() -> None:
    assert bridge_name({IFNAME: b"eth0\0"}) is None


def test_interface_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match="No such device"):
        bridge_of(0x7FFFFFFF)
