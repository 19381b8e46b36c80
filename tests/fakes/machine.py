# SPDX-License-Identifier: Apache-2.0
"""A machine in memory, for the checks of `doctor`: nothing of this one is looked at."""

import stat
from pathlib import Path, PurePosixPath

from vhostpci_shared.findings import CannotLook
from vhostpci_shared.machine import FileInfo, Machine, Output

DIRECTORY = FileInfo(inode=(1, 2), uid=0, gid=0, mode=stat.S_IFDIR | 0o755)
FILE = FileInfo(inode=(1, 3), uid=0, gid=0, mode=stat.S_IFREG | 0o644)


class FakeMachine(Machine):
    """Files by their paths, and what programs print by their command lines."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.user = 0
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.infos: dict[str, FileInfo] = {}
        """What lies at a path, where it is no usual file or directory."""
        self.rooms: dict[str, int] = {}
        """The free bytes of file systems, by a directory in each."""
        self.outputs: dict[tuple[str, ...], Output] = {}
        self.hidden: set[str] = set()
        """The paths that this user may not read."""
        self.uname = "x86_64", "6.1.0-1-amd64"

    @property
    def architecture(self) -> str:
        return self.uname[0]

    @property
    def release(self) -> str:
        return self.uname[1]

    def _known(self) -> set[str]:
        return {*self.files, *self.links, *self.infos}

    def _refuse(self, path: str) -> None:
        if path in self.hidden:
            raise PermissionError(13, "Permission denied", path)

    def text(self, path: str) -> str:
        self._refuse(path)
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    def names(self, path: str) -> list[str]:
        self._refuse(path)
        inside = f"{path}/"
        found = {
            one.removeprefix(inside).partition("/")[0]
            for one in self._known()
            if one.startswith(inside)
        }
        if not found:
            raise FileNotFoundError(2, "No such file or directory", path)
        return sorted(found)

    def link(self, path: str) -> str:
        self._refuse(path)
        if path not in self.links:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.links[path]

    def info(self, path: str) -> FileInfo:
        self._refuse(path)
        if path in self.infos:
            return self.infos[path]
        if path in self.files or path in self.links:
            return FILE
        if any(
            PurePosixPath(path) in PurePosixPath(one).parents for one in self._known()
        ):
            return DIRECTORY
        raise FileNotFoundError(2, "No such file or directory", path)

    def free(self, path: str) -> int:
        above = [path, *map(str, PurePosixPath(path).parents)]
        return next(self.rooms[one] for one in above if one in self.rooms)

    def run(self, *command: str) -> Output:
        if command not in self.outputs:
            raise CannotLook(f"there is no program {command[0]}")
        return self.outputs[command]
