# SPDX-License-Identifier: Apache-2.0
"""A slave VM that runs, as those who plug into it see it."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from ..errors import HostError
from ..interfaces import Plug


class PlugError(HostError):
    """The VM refused a step, or did not finish it in time; it is tried again."""


class VmAway(PlugError):
    """There is no VM to ask, or it does not answer; nothing is known of it."""


class SlaveVm(Protocol):
    """A slave VM that may come, go and hang; shared by the devices it is slave of.

    Each call is bounded in time, may be cancelled, and raises `PlugError` with a
    text that names the thing and the mend, or `VmAway` when there is no VM.
    """

    async def plugged(self, device: str) -> set[int]:
        """Return which windows of `device` the VM has.

        That includes half of one: what a plug that failed, or a daemon that died,
        has left behind, and what the guest has not let go of yet.
        """
        ...

    async def plug(self, device: str, plug: Plug) -> None:
        """Plug one window; on an error nothing of it stays, if it can be helped."""

    async def unplug(self, device: str, window: int) -> None:
        """Unplug one window; return when the guest has let go and all of it is gone.

        A second call, while the guest has not answered the first, asks it again.
        What is not there is unplugged at once.
        """

    async def unassigned(self, device: str) -> set[int]:
        """Return which of the plugged windows have no address in the guest."""
        ...

    async def gone(self) -> None:
        """Return when the VM that was asked last has ended; at once if none is there.

        The caller then asks `plugged` anew.
        """

    async def close(self) -> None:
        """Let go of the VM; what is plugged stays plugged."""


@contextlib.contextmanager
def understood(vm: str, command: str) -> Iterator[None]:
    """Whoever answers nonsense is no QEMU that we know.

    Raises:
        PlugError: what the block does with the answer of `vm` to `command` fails.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PlugError(
            f"{vm} answers {command} in a way that we do not understand ({error!r}): "
            "we know QEMU 7.2 to 10.x"
        ) from error
