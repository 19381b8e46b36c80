# SPDX-License-Identifier: Apache-2.0
"""Whether a front-end that was disconnected would come back, and go on.

QEMU says it in its command line, and comes back for as long as it takes.  Cloud
Hypervisor may give up after a minute, for as long as its VM runs, or go on at the wrong
place of its rings.  What a process says here decides about its own carrier and nothing
else, so it may lie.
"""

import os
import re
from pathlib import Path

from ..memory.limited_read import read_with_limit

_RECONNECT = re.compile(r"reconnect(-ms)?=0*[1-9]\d*", re.ASCII)
"""`reconnect=` in seconds, and from QEMU 9.2 on `reconnect-ms=`; 0 means never."""


def is_hidden(pid: int) -> bool:
    """Whether we cannot see process `pid` in /proc."""
    return not os.path.exists(f"/proc/{pid}/stat")


def is_qemu(pid: int) -> bool:
    """Whether process `pid` has a name of QEMU's."""
    name = _name(pid)
    return "qemu" in name or name == "kvm"


def is_cloud_hypervisor(pid: int) -> bool:
    """Whether process `pid` is Cloud Hypervisor, of whose name Linux keeps 15 bytes."""
    return _name(pid).startswith("cloud-hyp")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def says_reconnect(pid: int, path: Path) -> bool:
    """Whether process `pid` is a QEMU whose chardev for the socket `path` reconnects.

    False, too, if we cannot read its command line.
    """
    text = read_with_limit(Path(f"/proc/{pid}/cmdline"))
    words = text.split("\0") if text else []
    return any(_reconnects(word, pid, path) for word in words)


def _reconnects(word: str, pid: int, path: Path) -> bool:
    """Whether a value of `-chardev` names the socket, and connects to it again."""
    kind, *options = _split(word)
    if kind not in ("socket", "backend=socket"):
        return False
    paths = [one.removeprefix("path=") for one in options if one.startswith("path=")]
    # The last one counts for QEMU.
    return (
        any(_RECONNECT.fullmatch(one) for one in options)
        and bool(paths)
        and _same(paths[-1], pid, path)
    )


def _split(word: str) -> list[str]:
    """Split QEMU's options at the commas; two of them stand for one in a value."""
    return [one.replace("\0", ",") for one in word.replace(",,", "\0").split(",")]


def _same(theirs: str, pid: int, ours: Path) -> bool:
    """Whether a path of the process is our path."""
    # Its file may be gone, or be in a directory that the process sees at another place:
    # then it is not known to be ours.
    if not os.path.isabs(theirs):
        try:
            theirs = os.path.join(os.readlink(f"/proc/{pid}/cwd"), theirs)
        except OSError:
            return False
    return os.path.realpath(theirs) == os.path.realpath(ours)
