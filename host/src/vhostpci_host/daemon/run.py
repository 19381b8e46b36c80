# SPDX-License-Identifier: Apache-2.0
"""A daemon from its start to its end: with one device, or with those of a file."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vhostpci_shared.limits import raise_descriptor_limit

from ..config.device import DeviceConfig
from ..config.file import ConfigFile
from ..errors import HostError
from ..keeper.store import DescriptorStore
from .daemon import Daemon
from .filtered import UNFILTERED, Filtered

log = logging.getLogger(__name__)


async def run(
    config: DeviceConfig,
    inherited: socket.socket | None = None,
    keeper: DescriptorStore | None = None,
    filtered: Filtered = UNFILTERED,
) -> None:
    """Serve one device until a signal ends the daemon.

    Raises:
        HostError: it cannot be served, or failed.
    """
    raise_descriptor_limit()
    async with _ending(Daemon(store=keeper, filtered=filtered)) as daemon:
        await daemon.restore([config])
        if config.name not in daemon.configs():
            await daemon.add(config, inherited)
        daemon.ready()
        daemon.warn_of_shortage()
        await daemon.ended()


async def run_file(
    file: ConfigFile,
    keeper: DescriptorStore | None = None,
    filtered: Filtered = UNFILTERED,
) -> None:
    """Serve the devices of a file, and those added later, until a signal ends it.

    Raises:
        HostError: another daemon serves the run-dir.
    """
    raise_descriptor_limit()
    async with _ending(Daemon(file.shared, keeper, filtered)) as daemon:
        daemon.serve_control(file.run_dir)
        daemon.begin_file(file)
        await daemon.restore(file.devices)
        await daemon.serve_file(file)
        daemon.ready()
        daemon.warn_of_shortage()
        log.info("serving %d devices; more by `vhostpci-host add`", len(file.devices))
        await daemon.ended()


@asynccontextmanager
async def _ending(daemon: Daemon) -> AsyncIterator[Daemon]:
    """Close a daemon at the block's end; its error is one that the user reads."""
    try:
        yield daemon
    except HostError:
        daemon.end_is_explained()
        raise
    finally:
        await daemon.close()
