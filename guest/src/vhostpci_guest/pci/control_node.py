# SPDX-License-Identifier: Apache-2.0
"""What uio_vhostpci has and UIO has not, by a second node: kmod/control.c.

A *window file* is BAR 2 as a separate file, which another process can map.  A *tie*
lets the kernel ring a doorbell whenever an eventfd is signalled.
"""

import errno
import fcntl
import logging
import os
import struct
from contextlib import suppress

from ..interfaces import Tie, WindowFile

log = logging.getLogger(__name__)

# kmod/uio_vhostpci_ioctl.h; an _IOW has the size of its argument in it.
_tie = struct.Struct("=iiHH")
_WINDOW = 0xA7 << 8
_TIE = 1 << 30 | _tie.size << 16 | 0xA7 << 8 | 1
_UNTIE = 1 << 30 | _tie.size << 16 | 0xA7 << 8 | 2


class ControlNode:
    """The second node, for one device; the caller keeps both nodes open.

    Args:
        fd: of the second node.
        node: of the device's UIO node, which shows that we may use the device.
        address: the device's PCI address.
    """

    def __init__(self, fd: int, node: int, address: str) -> None:
        self._fd = fd
        self._node = node
        self._address = address

    def window_file(self) -> WindowFile:
        """Return a new window file, for the caller to close.

        The one before is revoked, even of an agent that was killed: an access to it is
        then a SIGBUS.

        Raises:
            OSError: the kernel refuses.
        """
        return WindowFile(fcntl.ioctl(self._fd, _WINDOW, self._node))

    def revoke_window(self) -> None:
        """Take the window from all processes that have the window file mapped.

        Raises:
            OSError: the kernel refuses.
        """
        try:
            # The kernel has no other way: the next file revokes the one before, and
            # this one is closed before anything has mapped it.
            os.close(self.window_file().fd)
        except OSError as error:
            # An unplug or unbind has revoked it.
            if error.errno != errno.ENODEV:
                raise

    def tie(self, eventfd: int, peer: int, vector: int) -> Tie | None:
        """Let signals to an eventfd ring a doorbell; None, and a warning, if refused.

        An eventfd can be tied to one doorbell of the device.
        """
        kept = os.dup(eventfd)
        try:
            self._ask(_TIE, kept, peer, vector)
        except OSError as error:
            os.close(kept)
            log.warning(
                "%s: uio_vhostpci does not ring the doorbell of peer %d, vector %d: "
                "%s; the agent rings it",
                self._address,
                peer,
                vector,
                error.strerror,
            )
            return None
        return _KernelTie(self, kept)

    def untie(self, eventfd: int) -> None:
        """Undo a tie; nothing happens if the device was unplugged or unbound."""
        with suppress(OSError):
            self._ask(_UNTIE, eventfd, 0, 0)

    def _ask(self, request: int, eventfd: int, peer: int, vector: int) -> None:
        fcntl.ioctl(self._fd, request, _tie.pack(self._node, eventfd, vector, peer))


class _KernelTie:
    """A tie, which is undone when its descriptor is closed.

    The caller's may be closed by then, and its number may be another eventfd's.
    """

    def __init__(self, control: ControlNode, eventfd: int) -> None:
        self._control = control
        self._eventfd: int | None = eventfd

    def close(self) -> None:
        """Untie the eventfd; the second time, do nothing."""
        if self._eventfd is not None:
            self._control.untie(self._eventfd)
            os.close(self._eventfd)
            self._eventfd = None
