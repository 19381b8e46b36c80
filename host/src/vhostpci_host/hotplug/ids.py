# SPDX-License-Identifier: Apache-2.0
"""The IDs that the windows' devices have in QEMU and in libvirt."""

from collections.abc import Iterable, Mapping

DEVICE = "-window"
"""The end of the ID of a window's device in QEMU, after its `object_id`."""


def object_id(device: str, window: int = 0) -> str:
    """Return the ID of a window: of its chardev in QEMU, of its `<shmem>` in libvirt.

    The ID leads back to the window, and to no other device's (`window_of`).
    """
    # The number comes before the name, which may have any character that an ID may:
    # behind it, window 300 of "a" would have the ID of window 0 of "a-300".
    return f"vhostpci.{window}.{device}" if window else f"vhostpci-{device}"


def window_of(device: str, identifier: str) -> int | None:
    """Return the window with this `object_id`; None if the ID is not of `device`."""
    # The IDs of the user's own chardevs and devices come here too: take any text.
    if identifier == object_id(device, 0):
        return 0
    head, _, rest = identifier.partition(".")
    # Only up to the next dot: the name may have dots itself.
    number, _, name = rest.partition(".")
    if head != "vhostpci" or name != device or not number.isdecimal():
        return None
    return int(number)


def windows_of(device: str, identifiers: Iterable[str]) -> set[int]:
    """Return the windows of `device` whose `object_id` is among those."""
    found = (window_of(device, identifier) for identifier in identifiers)
    return {window for window in found if window is not None}


def reasons_of(device: str, reasons: Mapping[str, str]) -> dict[int, str]:
    """Return by window what is known by `object_id`, of the windows of `device`."""
    found = {window_of(device, name): reason for name, reason in reasons.items()}
    return {window: why for window, why in found.items() if window is not None}
