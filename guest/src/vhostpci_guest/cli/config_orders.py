# SPDX-License-Identifier: Apache-2.0
"""The helper's part of a configuration file that is read again.

Only root may be able to read the file, and the agent has become another user.  So the
helper for TAPs reads it, and knows by it which bridges and sockets the user has named:
of the agent it takes no path, and no name that is not in the file.

   READ: the agent gets what the file says now, and checks it; the helper keeps that
   USE:  the agent follows it from now on, and so does the helper
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..config.file import content, read
from ..config.settings import Settings
from ..errors import FileError
from ..privileges.channel import Answer, BadOrder, Handler, Order

READ = "read the configuration"
USE = "use the configuration"


class ConfigOrders:
    """What the user has set, as the helper knows it.

    Args:
        settings: at the start.
        file: where they were read; None without a file.
    """

    def __init__(self, settings: Settings, file: Path | None = None) -> None:
        self.settings = settings
        # The helper's working directory is another.
        self._file = None if file is None else file.absolute()
        self._read: Settings | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Return what does each order."""
        return {READ: self._do_read, USE: self._do_use}

    def bridges(self) -> list[str]:
        """Return the names of the bridges that a TAP may join."""
        return self.settings.bridges

    def path(self, name: str) -> Path:
        """Return the path of the socket of the device of that name.

        Raises:
            Unusable: it has none.
        """
        return self.settings.place_of(name).path(name)

    def _do_read(self, _order: Order) -> Answer:
        if self._file is None:
            raise BadOrder("there is no configuration file")
        data = content(self._file)
        self._read = None
        # The agent finds the mistakes as well, and tells them.
        with suppress(FileError):
            self._read = read(self._file, data)
        return Answer(fd=_file_of(data))

    def _do_use(self, _order: Order) -> Answer:
        if self._read is None:
            raise BadOrder("no configuration was read that has no mistakes")
        self.settings, self._read = self._read, None
        return Answer()


def _file_of(data: bytes) -> int:
    """Return a descriptor at which these bytes can be read: an answer has 64 KiB."""
    fd = os.memfd_create("configuration", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(fd)
        raise
    return fd
