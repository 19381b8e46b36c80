# SPDX-License-Identifier: Apache-2.0
"""Makes a Unix socket that is at its path only when a process can connect to it.

Theory of operation.  bind() makes the file, and listen() comes later.  Between the two,
connect() is refused, as with the socket of a process that was killed.  So a process
that looks just then would take ours for a dead one, and remove it; and a QEMU that is
started when the file is there would end with an error.  Therefore the socket is bound
to a temporary name in the same directory, and gets its own name by rename() when it
listens.

getsockname() and `ss -xl` go on telling the name of the bind().  It begins with the
path, and `is_bound_for` knows it.
"""

import os
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

_PATH_MAX = 107
"""Bytes in the path of a Unix socket (sun_path, without its last zero)."""
_RANDOM = 3
_TEMPORARY = re.compile(f"~[0-9a-f]{{{2 * _RANDOM}}}")
"""What a temporary name has behind the path."""


# System calls: bind, chmod, chown, fchmod, listen, rename, socket(AF_UNIX), unlink.
def listen(
    path: Path,
    clear: Callable[[], None],
    *,
    mode: int | None = None,
    group: int | None = None,
    backlog: int,
) -> socket.socket:
    """Return a socket that listens at `path`, and never blocks.

    Args:
        path: of the socket.
        clear: removes the socket of a process that was killed; it raises an error if
            something else is there, which rename() would replace.
        mode: of the socket's file; None: what the umask leaves.
        group: of the socket's file; None: ours.
        backlog: how many connections may wait.

    Raises:
        OSError: the socket cannot be made; nothing of it is left.
    """
    first = _temporary(path)
    with ExitStack() as undo:
        server = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        server.setblocking(False)
        if mode is not None:
            os.fchmod(server.fileno(), mode)  # bind() makes the file with this mode
        if first == path:
            clear()
        server.bind(os.fspath(first))
        undo.callback(_remove, first)
        if mode is not None:
            os.chmod(first, mode)
        if group is not None:
            os.chown(first, -1, group)
        server.listen(backlog)
        if first != path:
            # As late as possible: what another process puts there behind this look is
            # replaced.  Not link(), which would replace nothing: AppArmor, which knows
            # a socket by its directory entry, would take it for a deleted one.
            clear()
            os.rename(first, path)
        undo.pop_all()
    return server


def is_bound_for(path: Path, name: object) -> bool:
    """Whether a socket that `listen` has made at `path` may be bound to `name`.

    Args:
        path: of the socket.
        name: what getsockname() has returned.
    """
    if not isinstance(name, str) or not name.startswith(os.fspath(path)):
        return False
    rest = name[len(os.fspath(path)) :]
    # Without a temporary name: a long path, or a socket that systemd has made.
    return not rest or _TEMPORARY.fullmatch(rest) is not None


def _temporary(path: Path) -> Path:
    """Return a name in the same directory; `path` itself if there is no room."""
    # Random, as the number of a process is not unique between PID namespaces.
    name = Path(f"{path}~{os.urandom(_RANDOM).hex()}")
    return name if len(os.fsencode(name)) <= _PATH_MAX else path


def _remove(path: Path) -> None:
    with suppress(OSError):
        os.unlink(path)
