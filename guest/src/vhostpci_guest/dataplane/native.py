# SPDX-License-Identifier: Apache-2.0
"""The C ring driver: worker threads that move the packets of a queue pair.

This is the only module that imports ``_ring``.  It turns dataclasses into C structs
and -errno into `RingError`; it decides nothing.

A ring's states, and the steps between them::

    IDLE, STOPPED --start()--> RUNNING --stop()--> STOPPED
                                  |
                                  |-- the master or the TAP broke it ------> BROKEN
                                  '-- its session or used index is another -> FENCED

``start()`` and ``stop()`` lead out of BROKEN and FENCED too.  A worker writes to its
``events_fd`` when a ring becomes BROKEN or FENCED.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from vhostpci_shared.metadata import AgentRingState

from .._ring import ffi, lib
from ..interfaces import Doorbell, Eventfd
from .faults import Fault, RingError, check, reason
from .interface import MemRegion, RingConf, RingStatus, Stats
from .tx_methods import IO_URING, WRITEV, io_uring_reason

if TYPE_CHECKING:
    from .._ring import _CallsPtr as _Calls

MAX_PACKET = lib.RING_MAX_PACKET
MAX_THREAD_NAME = 15
"""Bytes in the name of a thread; Linux has no more."""
MAX_REGIONS = lib.RING_MAX_REGIONS
MAX_SIZE = lib.RING_MAX_SIZE

_NS = 1_000_000_000
_COUNTS = fields(Stats)


class RingIndex(IntEnum):
    """A queue of the pair, by its number in the master's device."""

    RX = 0  # TAP to master
    TX = 1  # master to TAP


def _ring_conf(conf: RingConf) -> dict[str, int]:
    """Return the members of a struct ring_conf."""
    doorbell = conf.call if isinstance(conf.call, Doorbell) else None
    return {
        "desc": conf.desc,
        "driver": conf.driver,
        "device": conf.device,
        "size": conf.size,
        "base": conf.base,
        "flags": conf.event_idx * lib.RING_EVENT_IDX
        | conf.indirect * lib.RING_INDIRECT
        | conf.mergeable * lib.RING_MRG_RXBUF
        | conf.in_order * lib.RING_IN_ORDER
        | conf.packed * lib.RING_PACKED
        | conf.segment_udp * lib.RING_SEGMENT_UDP,
        "hdr_len": conf.hdr_len,
        "max_packet": conf.max_packet,
        # -1: the binding has no interrupts, so the worker polls.
        "kick_fd": -1 if conf.kick_fd is None else conf.kick_fd,
        # A call is an eventfd or a doorbell, never both; C takes address 0 for no
        # doorbell.
        "call_fd": conf.call.fd if isinstance(conf.call, Eventfd) else -1,
        "call_value": doorbell.value if doorbell else 0,
        "call_addr": doorbell.host_addr if doorbell else 0,
        "meta_addr": conf.meta_addr,
        "session": conf.session,
        "position_addr": conf.position_addr,
        "origin": conf.origin,
    }


def _method(index: RingIndex, io_uring: int) -> tuple[str, str]:
    """Say how a ring's packets go to the TAP, and why they do not go by io_uring."""
    if index is RingIndex.RX:
        return "", ""
    if io_uring < 0:
        return WRITEV, io_uring_reason(-io_uring)
    return (IO_URING if io_uring else WRITEV), ""


def io_uring_error() -> int:
    """Return 0 if this machine lets us use io_uring, else an errno."""
    return -lib.uring_probe()


def confine_error() -> int:
    """Return 0 if this machine lets us confine workers, else an errno."""
    return -lib.confine_probe()


@dataclass(frozen=True, slots=True)
class CLayout:
    """Size of a C struct, and (offset, size) of each member, in order."""

    size: int
    members: Mapping[str, tuple[int, int]]


def c_layout(struct: str) -> CLayout:
    """Return the layout that the compiler gave a struct of ring_api.h."""
    ctype = ffi.typeof(f"struct {struct}")
    return CLayout(
        ffi.sizeof(ctype),
        {
            name: (member.offset, ffi.sizeof(member.type))
            for name, member in ctype.fields
        },
    )


def c_enum(name: str) -> dict[str, int]:
    """Return the names of an enum of ring_api.h, and their numbers."""
    return dict(ffi.typeof(f"enum {name}").relements)


def address_of(buffer: object) -> int:
    """Return the address of a buffer; keep the buffer while a worker uses it."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", buffer)))


class Guard:
    """Makes this process survive the loss of memory that it has mapped.

    When the mapped file shrinks, or the device is unplugged, an access raises SIGBUS,
    in a worker or in Python.  With a guard, zeros take the place of the whole range,
    the access goes on, and :attr:`lost` is set.

    Args:
        address: where the mapping starts.
        size: its length in bytes.

    Raises:
        RingError: no mapping can be at this address, or there are 4096 guards already.
    """

    def __init__(self, address: int, size: int) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        try:
            number = lib.guard_open(address, size, self._fd)
            # The table of texts has EINVAL for a ring's options, which is not meant
            # here.
            if number == -errno.EINVAL:
                raise RingError(
                    errno.EINVAL,
                    f"{size} bytes at {address:#x} are no mapping",
                    code="R029",
                )
            self._number = check(number, "guard a mapping")
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when the memory is lost."""
        return self._fd

    @property
    def lost(self) -> bool:
        """Whether the memory is lost."""
        # C sets it before it maps the zeros: after a read of such zeros it is True.  A
        # closed guard's number may belong to another guard by now.
        return not self._closed and lib.guard_lost(self._number) == 1

    def close(self) -> None:
        """Guard the mapping no longer.

        Call it after the last access, and before another mapping is made at this
        address.
        """
        if not self._closed:
            self._closed = True
            # The eventfd after the guard: guard_close() waits for a handler that may be
            # about to write to it.
            lib.guard_close(self._number)
            os.close(self._fd)


class Worker:
    """A thread that runs the two rings of a queue pair on one TAP queue.

    The TAP queue (non-blocking, IFF_VNET_HDR, its header length the rings')
    stays the caller's and stays open until close(), as does ``events_fd``, an
    eventfd.  So do a ring's eventfds and mappings, until it is stopped.

    ``thread``: its name.  Times are in seconds.  ``spin``: look for work so long
    before sleeping, as long as sleeps are as short as that.
    ``poll_min``, ``poll_max``: without kicks, sleep so long, twice as long each
    time.  ``hold``: how long a packet waits for the rest of its buffers.
    ``io_uring``: send by io_uring, if it can be used; `status` says whether it is.
    ``confine``: leave the thread the system calls that it needs, and no others.
    """

    def __init__(
        self,
        tap_fd: int,
        *,
        events_fd: int | None = None,
        pair: int = 0,
        thread: str | None = None,
        spin: float = 0.0,
        poll_min: float = 50e-6,
        poll_max: float = 5e-3,
        hold: float = 0.1,
        io_uring: bool = False,
        confine: bool = False,
        threaded: bool = True,
    ) -> None:
        self._name = f"queue pair {pair}"
        out = ffi.new("struct worker **")
        conf = ffi.new(
            "struct worker_conf *",
            {
                "tap_fd": tap_fd,
                "events_fd": -1 if events_fd is None else events_fd,
                # Linux takes no byte more, and C wants the 0 behind it.
                "name": (thread or f"vhostpci-{pair}").encode()[:MAX_THREAD_NAME],
                "manual": not threaded,
                "io_uring": io_uring,
                "confine": confine,
                "spin_ns": round(spin * _NS),
                "poll_min_ns": round(poll_min * _NS),
                "poll_max_ns": round(poll_max * _NS),
                "hold_ns": round(hold * _NS),
            },
        )
        result = lib.worker_create(conf, out)
        # Before the check raises: there is no worker that close() could end.
        self._closed = result < 0
        self._check_created(result, tap_fd, poll_min, poll_max)
        self._worker = out[0]

    def _check_created(
        self, result: int, tap_fd: int, poll_min: float, poll_max: float
    ) -> None:
        if result == -errno.EINVAL:
            raise RingError(
                errno.EINVAL,
                f"{self._name}: descriptor {tap_fd} is not a non-blocking TAP queue,"
                f" or polling from {poll_min} to {poll_max} s makes no sense",
                code="R030",
            )
        check(result, f"start a thread for {self._name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout: float = 5.0) -> None:
        """Stop the rings and end the thread; do nothing if that is done."""
        if self._closed:
            return
        check(
            lib.worker_destroy(self._worker, round(timeout * 1000)),
            f"end the thread of {self._name}",
        )
        # Not before: after a timeout C has freed nothing, and close() may be repeated.
        self._closed = True

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        """Replace the master's memory; both rings must be stopped."""
        self._require_open()
        table = [
            {"guest_addr": r.guest_addr, "size": r.size, "host_addr": r.host_addr}
            for r in regions
        ]
        # C copies the table, so it may be freed after the call.
        result = lib.worker_set_memory(
            self._worker, ffi.new("struct mem_region[]", table), len(table)
        )
        if result == -errno.EINVAL:
            raise RingError(
                errno.EINVAL,
                f"{self._name}: memory regions are empty, wrap or overlap;"
                " have the daemon start a new session",
                code="R031",
            )
        check(result, f"replace the memory of {self._name}")

    def start(self, index: RingIndex, conf: RingConf) -> None:
        """Run a ring."""
        self._require_open()
        try:
            c_conf = ffi.new("struct ring_conf *", _ring_conf(conf))
        except OverflowError as error:
            # cffi refuses a number that does not fit its member.  The numbers come from
            # the metadata, so it is the ring's entry that is wrong, not our code.
            raise RingError(
                errno.EINVAL, f"cannot start {self._ring(index)}: {error}", code="R032"
            ) from None
        check(
            lib.worker_start_ring(self._worker, index, c_conf),
            f"start {self._ring(index)}",
        )

    def stop(self, index: RingIndex, timeout: float = 1.0) -> int:
        """Stop a ring; return the used index at which another back-end goes on.

        After this call the worker does not touch the ring.
        """
        self._require_open()
        return check(
            lib.worker_stop_ring(self._worker, index, round(timeout * 1000)),
            f"stop {self._ring(index)}",
        )

    def status(self, index: RingIndex) -> RingStatus:
        """Return a ring's state, position and counts."""
        self._require_open()
        c_status = ffi.new("struct ring_status *")
        check(
            lib.worker_read_ring(self._worker, index, c_status),
            f"read {self._ring(index)}",
        )
        fault, error = Fault(c_status.fault), c_status.error
        method, method_reason = _method(index, c_status.io_uring)
        stats = {field.name: getattr(c_status.stats, field.name) for field in _COUNTS}
        stats["batches"] = tuple(c_status.stats.batches)
        return RingStatus(
            state=AgentRingState(c_status.state),
            index=c_status.index,
            reason=reason(fault, error),
            fault=fault,
            error=error,
            method=method,
            method_reason=method_reason,
            stats=Stats(**stats),
        )

    def capture(
        self, address: int, slots: int, slot_size: int, timeout: float = 0.4
    ) -> None:
        """Copy packets to some memory; address 0 ends that.

        After it the worker touches no memory for copies that it had before.
        """
        self._require_open()
        milliseconds = round(timeout * 1000)
        check(
            lib.worker_capture(self._worker, address, slots, slot_size, milliseconds),
            f"capture packets of {self._name}",
        )

    def step(self) -> int:
        """Run one round of a worker made with threaded=False, without its sleep.

        Return the number of packets that the round moved or dropped.  After 0 the rings
        ask for kicks.
        """
        self._require_open()
        return check(lib.worker_step(self._worker), f"step {self._name}")

    def _require_open(self) -> None:
        # C has freed a closed worker: a call with its pointer would be a use after
        # free.
        if self._closed:
            raise ValueError(f"the worker of {self._name} is closed")

    def _ring(self, index: RingIndex) -> str:
        return f"the {index.name} ring of {self._name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsConf:
    """A ring whose calls are passed on: struct calls_conf of ring_api.h.

    A descriptor that is -1, and an address that is 0, is not there.
    """

    call_fd: int
    out_fd: int
    call_addr: int
    call_value: int
    kick_fd: int
    avail_idx_addr: int


class Calls:
    """The thread of calls.c, which passes the calls of foreign back-ends on.

    Descriptors and mappings of a ring stay the caller's, and stay until it is removed.

    Args:
        name: of the thread.
        confine: leave the thread the system calls that it needs, and no others.
        poll_min: seconds between two looks at a ring that moves, for its kicks.
        poll_max: the same for one that does not move.

    Raises:
        RingError: the machine has no thread or no descriptor left.
    """

    def __init__(
        self, name: str, *, confine: bool, poll_min: float, poll_max: float
    ) -> None:
        out = ffi.new("struct calls **")
        cut = name.encode()[:MAX_THREAD_NAME]
        times = (round(poll_min * _NS), round(poll_max * _NS))
        check(
            lib.calls_create(cut, confine, *times, out),
            "start a thread for the calls",
        )
        self._calls: _Calls | None = out[0]

    def add(self, index: int, conf: CallsConf) -> None:
        """Pass the calls of a ring on, and make its kicks."""
        c_conf = ffi.new("struct calls_conf *", asdict(conf))
        check(
            lib.calls_add(self._open(), index, c_conf),
            f"pass the calls of ring {index} on",
        )

    def remove(self, index: int) -> None:
        """Pass the last call of a ring on, and no further one."""
        lib.calls_remove(self._open(), index)

    def counts(self, index: int) -> tuple[int, int]:
        """Return how many calls of a ring were passed on, and how many kicks made."""
        stats = ffi.new("struct calls_stats *")
        check(lib.calls_read(self._open(), index, stats), f"read ring {index}")
        return stats.calls, stats.kicks

    def close(self) -> None:
        """End the thread; do nothing if that is done."""
        if self._calls is not None:
            lib.calls_destroy(self._calls)
            self._calls = None

    def _open(self) -> "_Calls":
        if self._calls is None:
            raise ValueError("the thread for the calls has ended")
        return self._calls
