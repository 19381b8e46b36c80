# SPDX-License-Identifier: Apache-2.0
"""The IDs of what a VM has of ours, in QEMU and in libvirt."""

from collections.abc import Iterable

DEVICE = "-window"
"""What a window's device has in QEMU behind its `object_id`."""


def object_id(device: str, window: int = 0) -> str:
    """Return the ID of a window: of its chardev in QEMU, of its `<shmem>` in libvirt.

    A name may hold any character that an ID may, so the number comes before it:
    window 300 of "a" is not to be taken for window 0 of "a-300".
    """
    return f"vhostpci.{window}.{device}" if window else f"vhostpci-{device}"


def window_of(device: str, identifier: str) -> int | None:
    """Return the window whose `object_id` that is; None if it is another's."""
    if identifier == object_id(device, 0):
        return 0
    head, _, rest = identifier.partition(".")
    number, _, name = rest.partition(".")
    if head != "vhostpci" or name != device or not number.isdecimal():
        return None
    return int(number)


def windows_of(device: str, identifiers: Iterable[str]) -> set[int]:
    """Return the windows of `device` whose `object_id` is among those."""
    found = (window_of(device, identifier) for identifier in identifiers)
    return {window for window in found if window is not None}
