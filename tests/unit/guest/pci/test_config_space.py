# SPDX-License-Identifier: Apache-2.0
"""The number of vectors in a device's configuration space."""

from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.sysfs import FakeSystem, config
from tests.unit.guest.pci.plugged import device
from vhostpci_guest.pci import config_space


def test_vectors_are_unknown_without_root(system: FakeSystem) -> None:
    here = device(system)
    (here.path / "config").write_bytes(config(3)[:64])
    assert here.msix_vectors is None


def test_capability_list_that_loops_has_an_end(system: FakeSystem) -> None:
    here = device(system)
    space = bytearray(config(3))
    space[0x51] = 0x40  # MSI-X comes before ...
    space[0x40 + 1] = 0x40  # ... but the first points to itself
    (here.path / "config").write_bytes(space)
    assert here.msix_vectors == 0


@given(st.binary(min_size=256, max_size=256))
def test_any_configuration_space_has_some_number_of_vectors(space: bytes) -> None:
    assert 0 <= config_space.msix_vectors(space) <= 2048


def test_capability_pointer_counts_only_if_the_device_has_capabilities(
    system: FakeSystem,
) -> None:
    here = device(system)
    space = bytearray(config(3))
    space[0x06] = 0  # Status, "Capabilities List"
    (here.path / "config").write_bytes(space)
    assert here.msix_vectors == 0
