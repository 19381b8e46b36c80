# SPDX-License-Identifier: Apache-2.0
"""Why the C ring driver stopped a ring or refused a call, in words for the user."""

import errno
import os
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from vhostpci_shared.errors import Coded, Said


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


class _Why(NamedTuple):
    """What went wrong, what to do, and the code of both."""

    what: str
    remedy: str
    code: str


_RELOAD = "the master's driver broke the ring: reload that driver"
_AGAIN = "the agent starts the ring again after a pause"
_WAIT = "wait for the daemon's next session"

_FAULTS: Mapping[Fault, _Why] = {
    Fault.AVAIL_IDX: _Why(
        "the avail index jumped ahead or went back", _RELOAD, code="R001"
    ),
    Fault.HEAD: _Why(
        "a chain starts outside the descriptor table", _RELOAD, code="R002"
    ),
    Fault.NEXT: _Why("a chain goes on outside its table", _RELOAD, code="R003"),
    Fault.LOOP: _Why("a chain is longer than its table", _RELOAD, code="R004"),
    Fault.PIECES: _Why("a chain has more than 1023 pieces", _RELOAD, code="R005"),
    Fault.ADDRESS: _Why(
        "an address is outside the master's memory", _RELOAD, code="R006"
    ),
    Fault.DIRECTION: _Why("a buffer has the wrong direction", _RELOAD, code="R007"),
    Fault.INDIRECT: _Why(
        "an indirect descriptor is not allowed there", _RELOAD, code="R008"
    ),
    Fault.INDIRECT_SIZE: _Why(
        "an indirect table has a wrong length", _RELOAD, code="R009"
    ),
    Fault.NESTED: _Why("an indirect table points to another", _RELOAD, code="R010"),
    Fault.TAP: _Why("the TAP failed", _AGAIN, code="R011"),
    Fault.KICK: _Why("the kick eventfd failed", "restart the agent", code="R012"),
    Fault.USED_MOVED: _Why("another back-end has used the ring", _WAIT, code="R013"),
    Fault.SESSION: _Why("the ring's session is over", _WAIT, code="R014"),
    Fault.MEMORY: _Why(
        "the kernel cannot use the master's memory: its file system on the hypervisor "
        "is full, its file shrank, or the device was unplugged",
        _AGAIN,
        code="R015",
    ),
}

_NEW_SESSION = "the metadata is wrong: reload the master's driver for a new session"

_ERRORS: Mapping[int, _Why] = {
    errno.EBUSY: _Why("it is running", "stop it first", code="R016"),
    errno.EINVAL: _Why(
        "size, index, alignment, header or packet length are wrong",
        _NEW_SESSION,
        code="R017",
    ),
    errno.EFAULT: _Why(
        "it does not lie within one memory region", _NEW_SESSION, code="R018"
    ),
    errno.ESTALE: _Why(
        "its used index or its session is not the one expected",
        "read the metadata again",
        code="R019",
    ),
    errno.EBADMSG: _Why(
        "an agent was killed while it gave the master several buffers at once",
        "reload the master's driver",
        code="R020",
    ),
    errno.ETIMEDOUT: _Why(
        "the worker did not stop within the time limit",
        "a system call on the TAP may hang; try again",
        code="R021",
    ),
    errno.ENOENT: _Why("it was never started", "start it first", code="R022"),
    errno.ENOSPC: _Why(
        "there are too many", "serve fewer devices with one agent", code="R023"
    ),
}


class RingError(Coded, OSError):
    """A call of the C ring driver failed; the message says what to change."""

    def __init__(self, number: int, text: str, *, code: str = "") -> None:
        OSError.__init__(self, number, text)
        self.code = code


def reason(fault: Fault, error: int = 0) -> str:
    """Return what stopped a ring and what to do; "" if nothing did.

    Args:
        fault: what the C ring driver reports.
        error: the errno that came with it, or 0.
    """
    if fault is Fault.NONE:
        return ""
    why = _FAULTS[fault]
    detail = f" ({os.strerror(error)})" if error else ""
    return Said(f"{why.what}{detail}; {why.remedy}", why.code)


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
    why = _ERRORS.get(
        -result, _Why(os.strerror(-result), "the system's log may say why", code="R024")
    )
    raise RingError(
        -result, f"cannot {action}: {why.what}; {why.remedy}", code=why.code
    )
