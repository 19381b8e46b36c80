# SPDX-License-Identifier: Apache-2.0
"""What all the formats need: one error for bad bytes, and one way to unpack."""

from struct import Struct
from typing import Any


class ProtocolError(Exception):
    """The peer sent what its protocol does not allow.

    The fault is the peer's: drop that peer, log one line, serve on.
    """


def unpack(layout: Struct, data: bytes) -> tuple[Any, ...]:
    """Unpack `data`, which must be exactly one `layout`.

    Raises:
        ProtocolError: `data` has another length.
    """
    if len(data) != layout.size:
        raise ProtocolError(f"{len(data)} bytes where {layout.size} are needed")
    return layout.unpack(data)
