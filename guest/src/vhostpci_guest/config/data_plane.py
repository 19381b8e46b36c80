# SPDX-License-Identifier: Apache-2.0
"""The data plane that the user wants, and which other options fit it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vhostpci_shared.errors import BadValue, Problem

from ..dataplane.kinds import AUTO, RING, VHOST_NET, VHOST_USER, WHY_RING
from ..dataplane.vhost_user.place import Place, parse_place

OF_A_TAP = ("tap", "bridge", "keep-tap", "mtu", "address", "mac", "cpus", "poll-us")
"""Options that mean nothing where the packets go to another process."""


OF_THREADS = ("cpus", "poll-us")
"""Options that mean nothing where the kernel moves the packets."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A data plane, as the option --data-plane names it."""

    kind: str = RING
    place: Place | None = None
    """Where the back-ends' sockets are."""
    reason: str = ""
    """Why it is this one, if that was not the user's choice."""

    @property
    def has_tap(self) -> bool:
        """Whether packets go to a TAP."""
        return self.place is None

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel's vhost-net moves the packets."""
        return self.kind == VHOST_NET

    def misfits(self, given: Collection[str]) -> Iterator[Problem]:
        """Yield each option that does not fit, and why.

        Args:
            given: names of the other options that the user has set.
        """
        for name in OF_THREADS if self.in_kernel else ():
            if name in given:
                yield Problem(
                    name,
                    f"the data plane {self.kind} has no threads of ours; leave this "
                    "option out",
                    code="G035",
                )
        for name in () if self.has_tap else OF_A_TAP:
            if name in given:
                yield Problem(
                    name,
                    f"the data plane {self.kind} has no TAP; leave this option out",
                    code="G036",
                )


AUTOMATIC = Choice(RING, reason=WHY_RING)


def parse_data_plane(text: str) -> Choice:
    """Read the value of --data-plane.

    Raises:
        BadValue: there is no such data plane.
    """
    kind, colon, rest = text.partition(":")
    if kind == VHOST_USER and colon:
        return Choice(kind, parse_place(rest))
    if text == AUTO:
        return AUTOMATIC
    if text in (RING, VHOST_NET):
        return Choice(kind)
    raise BadValue(
        f"{text!r}: write {AUTO}, {RING}, {VHOST_NET} or {VHOST_USER}:PATH", code="G037"
    )
