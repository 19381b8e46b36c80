# SPDX-License-Identifier: Apache-2.0
"""The ring driver: worker threads in C that carry the packets of a queue pair.

This is the only module that imports ``_ring``.  It turns dataclasses into C
structs and -errno into :class:`RingError`; it decides nothing.

A ring's states, and what leads from one to the next::

    STOPPED --start()--> RUNNING --stop()--> STOPPED
                            |
                            |-- the master or the TAP broke it --> BROKEN
                            '-- it is somebody else's by now ----> FENCED

``start()`` and ``stop()`` lead out of BROKEN and FENCED too.  A worker writes to
its ``events_fd`` when a ring became one of them.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Self

from vhostpci_guest._ring import ffi, lib

MAX_PACKET = lib.RING_MAX_PACKET
MAX_REGIONS = lib.RING_MAX_REGIONS
MAX_SIZE = lib.RING_MAX_SIZE

_NS = 1_000_000_000


class RingIndex(IntEnum):
    """A queue of the pair, by its number in the master's device."""

    RX = 0  # TAP to master
    TX = 1  # master to TAP


class RingState(IntEnum):
    STOPPED = 0
    RUNNING = 1
    BROKEN = 2
    FENCED = 3


class Fault(IntEnum):
    """Why a ring is BROKEN or FENCED: enum ring_fault."""

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


_MASTER = "the master's driver broke it: reload that driver"

_FAULTS: Mapping[Fault, tuple[str, str]] = {
    Fault.NONE: ("nothing is wrong", "nothing to do"),
    Fault.AVAIL_IDX: ("the avail index jumped ahead or went back", _MASTER),
    Fault.HEAD: ("a chain starts outside the descriptor table", _MASTER),
    Fault.NEXT: ("a chain goes on outside its table", _MASTER),
    Fault.LOOP: ("a chain is longer than its table", _MASTER),
    Fault.PIECES: ("a chain has more than 1023 pieces", _MASTER),
    Fault.ADDRESS: ("an address is outside the master's memory", _MASTER),
    Fault.DIRECTION: ("a buffer has the wrong direction", _MASTER),
    Fault.INDIRECT: ("an indirect descriptor is not allowed there", _MASTER),
    Fault.INDIRECT_SIZE: ("an indirect table has a wrong length", _MASTER),
    Fault.NESTED: ("an indirect table points to another", _MASTER),
    Fault.TAP: ("the TAP failed", "make the TAP anew and start the ring again"),
    Fault.KICK: ("the kick eventfd failed", "start the ring again"),
    Fault.USED_MOVED: (
        "somebody else moved the used index",
        "wait for the daemon's next session",
    ),
    Fault.SESSION: ("its session is over", "wait for the daemon's next session"),
    Fault.MEMORY: (
        "the master's memory is gone: its file shrank, or the device was unplugged",
        "wait for the daemon's next session",
    ),
}

_MENDS: Mapping[int, tuple[str, str]] = {
    errno.EBUSY: ("it is running", "stop it first"),
    errno.EINVAL: (
        "size, index, alignment, header or packet length are wrong",
        "the metadata is at fault; have the daemon start a new session",
    ),
    errno.EFAULT: (
        "it does not lie within one memory region",
        "the metadata is at fault; have the daemon start a new session",
    ),
    errno.ESTALE: (
        "its used index or its session is not the one expected",
        "read the metadata again",
    ),
    errno.ETIMEDOUT: (
        "the worker did not let go of it in time",
        "the kernel may hang in the TAP; try again",
    ),
    errno.ENOENT: ("it was never started", "start it first"),
    errno.ENOSPC: ("there are too many", "serve fewer devices with one agent"),
}


class RingError(OSError):
    """The C ring driver said no.  The message says what to change."""


def _check(result: int, doing: str) -> int:
    if result >= 0:
        return result
    why, mend = _MENDS.get(
        -result, (os.strerror(-result), "see the system's log for its reason")
    )
    raise RingError(-result, f"cannot {doing}: {why}; {mend}")


@dataclass(frozen=True, slots=True)
class MemRegion:
    """A range of the master's guest-physical memory, mapped at host_addr."""

    guest_addr: int
    size: int
    host_addr: int


@dataclass(frozen=True, slots=True)
class Doorbell:
    """The slave's doorbell register, where it is mapped."""

    host_addr: int
    peer: int
    vector: int


@dataclass(frozen=True, slots=True)
class Eventfd:
    """An eventfd that somebody else owns, and keeps open while the ring runs."""

    fd: int


Call = Doorbell | Eventfd


@dataclass(frozen=True, slots=True, kw_only=True)
class RingConf:
    """A ring to run.  Addresses of its parts are guest-physical."""

    desc: int
    driver: int
    device: int
    size: int
    base: int
    hdr_len: int
    """Length of the net header: 12 with VERSION_1 or MRG_RXBUF, else 10."""
    max_packet: int
    """Longest packet to the master: 65,600 if it takes segments, else its MTU."""
    event_idx: bool = False
    indirect: bool = False
    mergeable: bool = False
    kick_fd: int | None = None
    """None: poll."""
    call: Call | None = None
    meta_addr: int = 0
    """Where the ring's metadata entry is mapped; 0: there is no session."""
    session: int = 0

    def _c(self) -> dict[str, int]:
        doorbell = self.call if isinstance(self.call, Doorbell) else None
        return {
            "desc": self.desc,
            "driver": self.driver,
            "device": self.device,
            "size": self.size,
            "base": self.base,
            "flags": self.event_idx * lib.RING_EVENT_IDX
            | self.indirect * lib.RING_INDIRECT
            | self.mergeable * lib.RING_MRG_RXBUF,
            "hdr_len": self.hdr_len,
            "max_packet": self.max_packet,
            "kick_fd": -1 if self.kick_fd is None else self.kick_fd,
            "call_fd": self.call.fd if isinstance(self.call, Eventfd) else -1,
            "call_value": doorbell.peer << 16 | doorbell.vector if doorbell else 0,
            "call_addr": doorbell.host_addr if doorbell else 0,
            "meta_addr": self.meta_addr,
            "session": self.session,
        }


@dataclass(frozen=True, slots=True)
class Stats:
    """struct ring_stats: counted since the worker was made."""

    packets: int
    bytes: int
    kicks: int
    polls: int
    calls: int
    used_updates: int
    tap_full: int
    no_buffers: int
    spilled: int
    bad_chains: int
    drop_bad: int
    drop_refused: int
    drop_memory: int
    drop_down: int
    drop_other: int
    drop_runt: int
    drop_long: int
    drop_no_room: int
    drop_stop: int
    faults: int

    @property
    def dropped(self) -> int:
        """Packets lost, for whatever reason."""
        return (
            self.drop_bad
            + self.drop_refused
            + self.drop_memory
            + self.drop_down
            + self.drop_other
            + self.drop_runt
            + self.drop_long
            + self.drop_no_room
            + self.drop_stop
        )


@dataclass(frozen=True, slots=True)
class RingStatus:
    state: RingState
    fault: Fault
    error: int
    """errno that came with the fault, or 0."""
    index: int
    """The used index that was written last: where a successor goes on."""
    stats: Stats

    @property
    def reason(self) -> str:
        """What is wrong, and what to do about it."""
        what, mend = _FAULTS[self.fault]
        detail = f" ({os.strerror(self.error)})" if self.error else ""
        return f"{what}{detail}; {mend}"


@dataclass(frozen=True, slots=True)
class CLayout:
    """Size of a C struct, and (offset, size) of each member, in order."""

    size: int
    members: Mapping[str, tuple[int, int]]


def c_layout(struct: str) -> CLayout:
    """How the compiler laid a struct of ring_api.h out."""
    ctype = ffi.typeof(f"struct {struct}")
    return CLayout(
        ffi.sizeof(ctype),
        {
            name: (member.offset, ffi.sizeof(member.type))
            for name, member in ctype.fields
        },
    )


def address_of(buffer: object) -> int:
    """Where a buffer lies: a mapping, to be kept while a worker uses it."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", buffer)))


class Guard:
    """Lets this process survive that memory is taken away while it is mapped.

    Its file may shrink, its device may be unplugged; an access is a SIGBUS then, in
    a worker or in Python.  With a guard, zeros take the place of the whole range, the
    access goes on, and :attr:`lost` is set.

    Args:
        address: where the mapping starts.
        size: its length.

    Raises:
        RingError: that is no mapping, or there are 4096 guards.
    """

    def __init__(self, address: int, size: int) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        try:
            number = lib.guard_open(address, size, self._fd)
            if number == -errno.EINVAL:
                raise RingError(
                    errno.EINVAL, f"{size} bytes at {address:#x} are no mapping"
                )
            self._number = _check(number, "guard a mapping")
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when the memory is lost."""
        return self._fd

    @property
    def lost(self) -> bool:
        """Whether the memory is lost; whoever has read zeros of it finds this set."""
        return not self._closed and lib.guard_lost(self._number) == 1

    def close(self) -> None:
        """Let go: after the last access, and before anything else is mapped there."""
        if not self._closed:
            self._closed = True
            lib.guard_close(self._number)
            os.close(self._fd)


class Worker:
    """A thread that runs the two rings of a queue pair on one TAP queue.

    The TAP queue (non-blocking, IFF_VNET_HDR, its header length the rings')
    stays the caller's and stays open until close(), as does ``events_fd``, an
    eventfd.  So do a ring's eventfds and mappings, until it is stopped.

    Times are in seconds.  ``spin``: look for work so long before sleeping.
    ``poll_min``, ``poll_max``: without kicks, sleep so long, twice as long each
    time.  ``hold``: how long a packet waits for the rest of its buffers.
    """

    def __init__(
        self,
        tap_fd: int,
        *,
        events_fd: int | None = None,
        pair: int = 0,
        spin: float = 0.0,
        poll_min: float = 50e-6,
        poll_max: float = 5e-3,
        hold: float = 0.1,
        threaded: bool = True,
    ) -> None:
        self._name = f"queue pair {pair}"
        out = ffi.new("struct worker **")
        conf = ffi.new(
            "struct worker_conf *",
            {
                "tap_fd": tap_fd,
                "events_fd": -1 if events_fd is None else events_fd,
                "pair": pair,
                "manual": not threaded,
                "spin_ns": round(spin * _NS),
                "poll_min_ns": round(poll_min * _NS),
                "poll_max_ns": round(poll_max * _NS),
                "hold_ns": round(hold * _NS),
            },
        )
        result = lib.worker_create(conf, out)
        self._closed = result < 0
        if result == -errno.EINVAL:
            raise RingError(
                errno.EINVAL,
                f"{self._name}: descriptor {tap_fd} is not a non-blocking TAP queue,"
                f" or polling from {poll_min} to {poll_max} s makes no sense",
            )
        _check(result, f"start a thread for {self._name}")
        self._worker = out[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout: float = 5.0) -> None:
        """Stop the rings and end the thread.  May be repeated."""
        if self._closed:
            return
        _check(
            lib.worker_destroy(self._worker, round(timeout * 1000)),
            f"end the thread of {self._name}",
        )
        self._closed = True

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        """Replace the master's memory; both rings must be stopped."""
        self._open()
        table = [
            {"guest_addr": r.guest_addr, "size": r.size, "host_addr": r.host_addr}
            for r in regions
        ]
        result = lib.worker_set_memory(
            self._worker, ffi.new("struct mem_region[]", table), len(table)
        )
        if result == -errno.EINVAL:
            raise RingError(
                errno.EINVAL,
                f"{self._name}: memory regions are empty, wrap or overlap;"
                " have the daemon start a new session",
            )
        _check(result, f"replace the memory of {self._name}")

    def start(self, index: RingIndex, conf: RingConf) -> None:
        """Run a ring."""
        self._open()
        try:
            c_conf = ffi.new("struct ring_conf *", conf._c())
        except OverflowError as error:
            raise RingError(
                errno.EINVAL, f"cannot start {self._ring(index)}: {error}"
            ) from None
        _check(
            lib.worker_start_ring(self._worker, index, c_conf),
            f"start {self._ring(index)}",
        )

    def stop(self, index: RingIndex, timeout: float = 1.0) -> int:
        """Take a ring back: it is not touched after this.

        Returns the index at which a successor goes on.
        """
        self._open()
        return _check(
            lib.worker_stop_ring(self._worker, index, round(timeout * 1000)),
            f"stop {self._ring(index)}",
        )

    def status(self, index: RingIndex) -> RingStatus:
        """What a ring does, and has done."""
        self._open()
        c_status = ffi.new("struct ring_status *")
        _check(
            lib.worker_read_ring(self._worker, index, c_status),
            f"read {self._ring(index)}",
        )
        return RingStatus(
            RingState(c_status.state),
            Fault(c_status.fault),
            c_status.error,
            c_status.index,
            Stats(*(getattr(c_status.stats, field.name) for field in fields(Stats))),
        )

    def step(self) -> int:
        """One round of a worker made with threaded=False, without its sleep.

        Returns how many packets it dealt with; 0: kicks are asked for.
        """
        self._open()
        return _check(lib.worker_step(self._worker), f"step {self._name}")

    def _open(self) -> None:
        if self._closed:
            raise ValueError(f"the worker of {self._name} is closed")

    def _ring(self, index: RingIndex) -> str:
        return f"the {index.name} ring of {self._name}"
