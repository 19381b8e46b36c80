# SPDX-License-Identifier: Apache-2.0
"""What a client of the status socket may ask of one device, besides its status.

The agent's loop answers, and every device waits for that: an answer takes little time.
"""

from base64 import b64encode
from typing import Any

from ..errors import Refused
from .link import Link

MOST = 16384
"""Bytes that one request reads: as many as the loop copies for each generation."""


def answer(link: Link, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request; its values may be anything.

    Raises:
        Refused: there is no such command, or it asks for what is not there.
    """
    match request:
        case {
            "command": "read",
            "window": int(window),
            "offset": int(offset),
            "length": int(length),
        }:
            return _read(link, window, offset, length)
        case {"command": "clear"}:
            link.clear()
            return {}
    raise Refused(f"no command {request.get('command')!r} with these arguments")


def _read(link: Link, number: int, offset: int, length: int) -> dict[str, Any]:
    """Return a copy of a part of a window."""
    window = link.window(number)
    if window is None:
        raise Refused(f"window {number} is not there")
    if not (0 < length <= MOST and 0 <= offset <= window.size - length):
        raise Refused(
            f"{length} bytes at {offset:#x} are not in window {number}, which has "
            f"{window.size:#x}; at most {MOST} at one time"
        )
    data = bytes(window.view[offset : offset + length])
    return {"data": b64encode(data).decode()}
