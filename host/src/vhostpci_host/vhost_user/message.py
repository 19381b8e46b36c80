# SPDX-License-Identifier: Apache-2.0
"""One vhost-user message, and the descriptors that came with it."""

from dataclasses import dataclass, field
from typing import Self

from vhostpci_shared.vhost_user import Header, Payload, Request, Shape
from vhostpci_shared.vhost_user import message as encode

from ..fds import Fd


@dataclass
class Message:
    """A message with its descriptors; on exit it closes those that nothing took."""

    header: Header
    payload: bytes = b""
    fds: list[Fd] = field(default_factory=list)

    @classmethod
    def of(
        cls, request: Request, payload: Payload | None = None, *fds: Fd, flags: int = 0
    ) -> Self:
        """Make the message that a front-end sends as `request`."""
        data = encode(request, payload, flags)
        size = Header.layout.size
        return cls(Header.parse(data[:size]), data[size:], list(fds))

    def parse(self, shape: Shape) -> Payload:
        """Return the payload, checked against the request's shape.

        Raises:
            ProtocolError: the payload or the number of descriptors does not fit.
        """
        shape.check_fds(self.fds)
        return shape.payload.parse(self.payload)

    def take(self) -> Fd | None:
        """Return the first descriptor, which the caller then owns; None without one."""
        return self.fds.pop(0) if self.fds else None

    def close(self) -> None:
        """Close the descriptors that no handler took."""
        while self.fds:
            self.fds.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
