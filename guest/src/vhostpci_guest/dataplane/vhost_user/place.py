# SPDX-License-Identifier: Apache-2.0
"""Where the socket of a device's back-end is, and which end of it listens."""

from dataclasses import dataclass
from pathlib import Path

from vhostpci_shared.errors import BadValue

from ...errors import Unusable

_NAME = "{name}"
_SERVER = ",server="
"""As in QEMU's ``-chardev socket,path=...,server=on``."""


@dataclass(frozen=True, slots=True)
class Place:
    """The user's rule for the sockets of all devices."""

    template: str
    """A path; ``{name}`` in it is the device's name."""
    listens: bool
    """Whether the agent listens there, and the back-end connects."""

    def path(self, name: str) -> Path:
        """Return the path for the device of that name.

        Raises:
            Unusable: the name, which the hypervisor chooses, would lead elsewhere.
        """
        if _NAME in self.template and (not name or "/" in name or "\0" in name):
            raise Unusable(
                f"the device's name {name!r} cannot be a part of the path "
                f"{self.template}: give its socket a path without {_NAME}",
                code="G055",
            )
        return Path(self.template.replace(_NAME, name))


def parse_place(text: str) -> Place:
    """Read ``PATH``, ``PATH,server=on`` or ``PATH,server=off``.

    Raises:
        BadValue: it is none of them.
    """
    path, comma, server = text.partition(_SERVER)
    if comma and server not in ("on", "off"):
        raise BadValue(
            f"{text!r}: write server=on or server=off behind the path", code="G056"
        )
    rest = path.replace(_NAME, "")
    if "{" in rest or "}" in rest:
        raise BadValue(
            f"{text!r}: a path may have {_NAME} in it, and no other brace", code="G057"
        )
    if not path or path.endswith("/") or "\0" in path:
        raise BadValue(
            f"{text!r}: the path of a socket is missing: write vhost-user:PATH",
            code="G058",
        )
    if Path(path).name in (".", ".."):
        raise BadValue(
            f"{text!r}: {path} is a directory: name a socket in it", code="G059"
        )
    # A directory is no name that the hypervisor may choose: "..", for one.
    if _NAME in str(Path(path).parent):
        raise BadValue(
            f"{text!r}: {_NAME} may stand in the last part of a path only", code="G060"
        )
    return Place(str(Path(path).absolute()), listens=server != "off")
