# SPDX-License-Identifier: Apache-2.0
"""The error that all formats raise for bad bytes, and how they unpack good ones."""

from struct import Struct
from typing import Any

from .errors import Coded


class ProtocolError(Coded):
    """The peer broke its protocol: what it sent, or wrote, is not allowed.

    The code that catches this drops that peer, logs one line, and serves the others.
    """


def unpack(layout: Struct, data: bytes) -> tuple[Any, ...]:
    """Unpack `data`, which must be exactly as long as `layout`.

    Raises:
        ProtocolError: `data` has another length.
    """
    # struct would raise its own error, which means a bug of ours, not of the peer.
    if len(data) != layout.size:
        raise ProtocolError(
            f"{len(data)} bytes where {layout.size} are needed", code="P026"
        )
    return layout.unpack(data)
