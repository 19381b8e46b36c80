# SPDX-License-Identifier: Apache-2.0
"""What a client of the status socket may ask of one device, besides its status.

The agent's loop answers, and every device waits for that: an answer takes little time.
"""

from base64 import b64encode
from typing import Any

from ..dataplane.interface import Captures
from ..errors import Refused
from ..held import Held
from .link import Link

MOST = 16384
"""Bytes that one request reads: as many as the loop copies for each generation."""


def answer(link: Link, request: dict[str, Any]) -> dict[str, Any] | Held:
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
        case {"command": "capture", "snaplen": int(snaplen)} if snaplen > 0:
            return _capture(link, snaplen)
    raise Refused(
        f"no command {request.get('command')!r} with these arguments", code="G100"
    )


def _read(link: Link, number: int, offset: int, length: int) -> dict[str, Any]:
    """Return a copy of a part of a window."""
    window = link.window(number)
    if window is None:
        raise Refused(f"window {number} is not there", code="G101")
    if not (0 < length <= MOST and 0 <= offset <= window.size - length):
        raise Refused(
            f"{length} bytes at {offset:#x} are not in window {number}, which has "
            f"{window.size:#x}; at most {MOST} at one time",
            code="G102",
        )
    data = bytes(window.view[offset : offset + length])
    return {"data": b64encode(data).decode()}


def _capture(link: Link, snaplen: int) -> Held:
    """Have copies of the packets made, until the client goes or the data plane ends."""
    plane = link.plane
    if plane is None:
        raise Refused(
            "no ring has run yet: try again when the master is there", code="G103"
        )
    if not isinstance(plane, Captures):
        raise Refused(
            f"the data plane {link.port.kind} moves packets outside of the agent: "
            f"tcpdump -i {link.port.status().get('tap') or 'TAP'} shows those, without "
            "their virtio-net headers",
            code="G104",
        )
    if plane.captures:
        raise Refused(
            "another capture of this device is running: end it first", code="G105"
        )
    try:
        capture = plane.capture(snaplen)
    except OSError as error:
        raise Refused(
            f"no memory for the capture: {error.strerror}", code="G106"
        ) from None
    result = capture.describe()
    return Held(result, tuple(capture.fds), lambda: not capture.open, capture.close)
