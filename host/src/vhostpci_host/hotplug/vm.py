# SPDX-License-Identifier: Apache-2.0
"""A running slave VM, as the reconciler sees it, over QMP or through libvirt."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from ..errors import HostError
from ..interfaces import Plug


class PlugError(HostError):
    """The VM refused a step, or did not finish it in time; the caller may try again."""


# Also a PlugError: a rollback need not know why its step failed.  Where the difference
# matters, VmAway is caught first.
class VmAway(PlugError):
    """The VM does not run, or does not answer; what is plugged into it is unknown."""


class SlaveVm(Protocol):
    """A slave VM, which may start, end or hang at any time; its devices share it.

    Each call is bounded in time, and may be cancelled.  It raises `PlugError` with a
    text that says what to change, or `VmAway` when there is no VM.
    """

    async def plugged(self, device: str) -> set[int]:
        """Return which windows of `device` the VM has.

        That includes a window of which only the chardev or only the device is there
        (a plug that failed, or a daemon that died, left it), and one whose unplugging
        the guest has not confirmed yet.
        """
        ...

    async def plug(self, device: str, plug: Plug) -> None:
        """Plug one window; on an error, try to remove the half that was plugged."""

    async def unplug(self, device: str, window: int) -> None:
        """Unplug one window; return when the guest has released it and it is gone.

        A second call, while the guest has not answered the first, asks it again.  A
        window that is not plugged is no error.
        """

    async def unassigned(self, device: str) -> dict[int, str]:
        """Return the plugged windows that have no address in the guest.

        The value says why and what to do, where the VM shows that; else it is empty.
        """
        ...

    async def gone(self) -> None:
        """Return when the VM that was asked last has ended; at once if none is there.

        After that the caller asks `plugged` again.
        """

    async def close(self) -> None:
        """Close the connection to the VM; what is plugged stays plugged."""


@contextlib.contextmanager
def understood(vm: str, command: str) -> Iterator[None]:
    """Turn the errors of code that takes an answer apart into a PlugError.

    Raises:
        PlugError: the answer of `vm` to `command` is not of QEMU's form.
    """
    try:
        yield
    # What wrong keys, types and numbers raise.  An answer is QEMU's or libvirt's: it
    # must not end the reconciler's task, which tries again.
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PlugError(
            f"{vm} answers {command} in a way that we do not understand ({error!r}): "
            "we know QEMU 7.2 to 11.x",
            code="H115",
        ) from error
