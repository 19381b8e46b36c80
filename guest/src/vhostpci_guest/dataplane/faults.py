# SPDX-License-Identifier: Apache-2.0
"""Why the C ring driver stopped a ring or refused a call, in words for the user."""

import errno
import os
from collections.abc import Mapping
from enum import IntEnum


class Fault(IntEnum):
    """Why a ring is BROKEN or FENCED: enum ring_fault of ring_api.h."""

    NONE = 0
    AVAIL_IDX = 1
    HEAD = 2
    NEXT = 3
    LOOP = 4
    PIECES = 5
    ADDRESS = 6
    DIRECTION = 7
    INDIRECT = 8
    INDIRECT_SIZE = 9
    NESTED = 10
    TAP = 11
    KICK = 12
    USED_MOVED = 13
    SESSION = 14
    MEMORY = 15


_RELOAD = "the master's driver broke the ring: reload that driver"
_AGAIN = "the agent starts the ring again after a pause"
_WAIT = "wait for the daemon's next session"

_FAULTS: Mapping[Fault, tuple[str, str]] = {
    Fault.AVAIL_IDX: ("the avail index jumped ahead or went back", _RELOAD),
    Fault.HEAD: ("a chain starts outside the descriptor table", _RELOAD),
    Fault.NEXT: ("a chain goes on outside its table", _RELOAD),
    Fault.LOOP: ("a chain is longer than its table", _RELOAD),
    Fault.PIECES: ("a chain has more than 1023 pieces", _RELOAD),
    Fault.ADDRESS: ("an address is outside the master's memory", _RELOAD),
    Fault.DIRECTION: ("a buffer has the wrong direction", _RELOAD),
    Fault.INDIRECT: ("an indirect descriptor is not allowed there", _RELOAD),
    Fault.INDIRECT_SIZE: ("an indirect table has a wrong length", _RELOAD),
    Fault.NESTED: ("an indirect table points to another", _RELOAD),
    Fault.TAP: ("the TAP failed", _AGAIN),
    Fault.KICK: ("the kick eventfd failed", "restart the agent"),
    Fault.USED_MOVED: ("another back-end has used the ring", _WAIT),
    Fault.SESSION: ("the ring's session is over", _WAIT),
    Fault.MEMORY: (
        "the kernel cannot use the master's memory: its file system on the hypervisor "
        "is full, its file shrank, or the device was unplugged",
        _AGAIN,
    ),
}

_NEW_SESSION = "the metadata is wrong: reload the master's driver for a new session"

_ERRORS: Mapping[int, tuple[str, str]] = {
    errno.EBUSY: ("it is running", "stop it first"),
    errno.EINVAL: (
        "size, index, alignment, header or packet length are wrong",
        _NEW_SESSION,
    ),
    errno.EFAULT: ("it does not lie within one memory region", _NEW_SESSION),
    errno.ESTALE: (
        "its used index or its session is not the one expected",
        "read the metadata again",
    ),
    errno.EBADMSG: (
        "an agent was killed while it gave the master several buffers at once",
        "reload the master's driver",
    ),
    errno.ETIMEDOUT: (
        "the worker did not stop within the time limit",
        "a system call on the TAP may hang; try again",
    ),
    errno.ENOENT: ("it was never started", "start it first"),
    errno.ENOSPC: ("there are too many", "serve fewer devices with one agent"),
}


class RingError(OSError):
    """A call of the C ring driver failed; the message says what to change."""


def reason(fault: Fault, error: int = 0) -> str:
    """Return what stopped a ring and what to do; "" if nothing did.

    Args:
        fault: what the C ring driver reports.
        error: the errno that came with it, or 0.
    """
    if fault is Fault.NONE:
        return ""
    what, remedy = _FAULTS[fault]
    detail = f" ({os.strerror(error)})" if error else ""
    return f"{what}{detail}; {remedy}"


def check(result: int, action: str) -> int:
    """Return the result of a C call, if it is no error.

    Args:
        result: what the call returned: -errno for an error.
        action: what the call was to do, as "stop the RX ring of queue pair 0".

    Raises:
        RingError: the result is an error.
    """
    if result >= 0:
        return result
    why, remedy = _ERRORS.get(
        -result, (os.strerror(-result), "the system's log may say why")
    )
    raise RingError(-result, f"cannot {action}: {why}; {remedy}")
