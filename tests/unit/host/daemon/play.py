# SPDX-License-Identifier: Apache-2.0
"""Tests that are a part in the loop of a daemon."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from tests.waiting import TIMEOUT
from vhostpci_host.daemon.daemon import Daemon


class HasDaemon(Protocol):
    """A scene with a daemon."""

    daemon: Daemon


S = TypeVar("S", bound=HasDaemon)


def player(
    make: Callable[[Path], S], directory: Path
) -> Callable[[Callable[[S], Awaitable[None]]], None]:
    """Return what runs a part in the loop of a daemon, which is closed after it.

    Args:
        make: makes the scene, in that loop.
        directory: where the scene's files are, and the daemon's control socket.
    """

    async def run(part: Callable[[S], Awaitable[None]]) -> None:
        scene = make(directory)
        try:
            scene.daemon.serve_control(directory)
            await scene.daemon.restore([])
            await part(scene)
        finally:
            await scene.daemon.close()

    return lambda part: asyncio.run(asyncio.wait_for(run(part), TIMEOUT))
