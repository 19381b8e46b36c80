# SPDX-License-Identifier: Apache-2.0
"""The IDs of our objects in a slave VM."""

from vhostpci_host.hotplug.ids import object_id, window_of


def test_object_ids_lead_back_to_their_window_and_to_no_other_device() -> None:
    names = ["a", "a-300", "300.a", "a.300", "vhostpci"]
    for name in names:
        for window in (0, 300, 65535):
            identifier = object_id(name, window)
            assert [window_of(other, identifier) for other in names] == [
                window if other == name else None for other in names
            ]
