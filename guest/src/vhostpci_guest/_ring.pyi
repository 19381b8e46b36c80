# SPDX-License-Identifier: Apache-2.0
"""The C ring driver, as cffi builds it from ring/ring_api.h.

Every function returns 0 (or what it says) or -errno, is bounded in time, and
runs without the GIL.  A worker's owner calls from one thread at a time.  Only
dataplane/native.py imports this.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, overload

class _Struct: ...

class _RingStats(_Struct):
    packets: int
    bytes: int
    kicks: int
    kicks_suppressed: int
    polls: int
    calls: int
    calls_suppressed: int
    used_updates: int
    tap_full: int
    no_buffers: int
    spilled: int
    bad_chains: int
    segmented: int
    drop_bad: int
    drop_refused: int
    drop_memory: int
    drop_down: int
    drop_other: int
    drop_read: int
    drop_runt: int
    drop_long: int
    drop_no_room: int
    drop_stop: int
    faults: int
    batches: Sequence[int]

class _RingStatus(_Struct):
    state: int
    fault: int
    error: int
    index: int
    io_uring: int
    stats: _RingStats

class _WorkerPtr: ...

class _WorkerOut:
    def __getitem__(self, index: int) -> _WorkerPtr: ...

class _CallsPtr: ...

class _CallsOut:
    def __getitem__(self, index: int) -> _CallsPtr: ...

class _CallsStats(_Struct):
    calls: int
    kicks: int

class _Address:
    """A C pointer, which int() turns into an address."""

    def __int__(self) -> int: ...

class _Field:
    offset: int
    type: _Type

class _Type:
    fields: Sequence[tuple[str, _Field]]
    relements: dict[str, int]

class _FFI:
    @overload
    def new(self, cdecl: Literal["struct worker **"]) -> _WorkerOut: ...
    @overload
    def new(self, cdecl: Literal["struct ring_status *"]) -> _RingStatus: ...
    @overload
    def new(self, cdecl: Literal["struct calls **"]) -> _CallsOut: ...
    @overload
    def new(self, cdecl: Literal["struct calls_stats *"]) -> _CallsStats: ...
    @overload
    def new(
        self,
        cdecl: Literal[
            "struct worker_conf *", "struct ring_conf *", "struct calls_conf *"
        ],
        init: Mapping[str, int | bytes],
    ) -> _Struct: ...
    @overload
    def new(
        self, cdecl: Literal["struct mem_region[]"], init: list[dict[str, int]]
    ) -> Sequence[_Struct]: ...
    def cast(self, cdecl: str, value: object) -> _Address: ...
    def from_buffer(self, cdecl: str, buffer: object) -> object: ...
    def typeof(self, cdecl: str) -> _Type: ...
    def sizeof(self, cdecl: str | _Type) -> int: ...

class _Lib:
    RING_EVENT_IDX: int
    RING_INDIRECT: int
    RING_MRG_RXBUF: int
    RING_IN_ORDER: int
    RING_PACKED: int
    RING_SEGMENT_UDP: int
    RING_MAX_PACKET: int
    RING_MAX_REGIONS: int
    RING_MAX_SIZE: int

    def worker_create(self, conf: _Struct, ret: _WorkerOut) -> int:
        """Make a worker and, unless conf.manual, start its thread.

        conf is a struct worker_conf.  Its descriptors stay the caller's, and
        stay open until worker_destroy(); events_fd is an eventfd or -1.
        -EINVAL: a bad option, or the TAP's descriptor is blocking.
        """

    def worker_destroy(self, worker: _WorkerPtr, timeout_ms: int) -> int:
        """Stop the rings, end the thread, free everything.

        -ETIMEDOUT: nothing is freed, call again.
        """

    def worker_set_memory(
        self, worker: _WorkerPtr, regions: Sequence[_Struct], n: int
    ) -> int:
        """Replace the master's memory regions, struct mem_region each.

        They stay mapped until the next call.  -EBUSY: a ring is running;
        -EINVAL: a region is empty, wraps or overlaps; -E2BIG: too many.
        """

    def worker_start_ring(self, worker: _WorkerPtr, index: int, conf: _Struct) -> int:
        """Run a ring: struct ring_conf.  Its eventfds become non-blocking.

        -EBUSY: it is running; -EINVAL: size, base, alignment, header length or
        longest packet are wrong; -EFAULT: a part of the ring is not within one
        region; -ESTALE: used idx or session in memory are others.
        """

    def worker_stop_ring(self, worker: _WorkerPtr, index: int, timeout_ms: int) -> int:
        """Stop a ring.  Returns the used index where another back-end goes on.

        After this the worker touches neither the ring nor the regions nor the
        eventfds.  -ETIMEDOUT: the worker still uses the ring, call again; -ENOENT:
        the ring was never started.
        """

    def worker_read_ring(self, worker: _WorkerPtr, index: int, ret: _RingStatus) -> int:
        """Fill a struct ring_status."""

    def worker_capture(
        self,
        worker: _WorkerPtr,
        addr: int,
        n_slots: int,
        slot_size: int,
        timeout_ms: int,
    ) -> int:
        """Copy packets to memory at addr, or end that (0).

        It holds n_slots, each of slot_size bytes: a struct capture_slot and the bytes
        behind it.  -EINVAL: a size or the alignment is wrong; -ETIMEDOUT: the thread
        may still use the memory before, call again.
        """

    def worker_step(self, worker: _WorkerPtr) -> int:
        """Run one round of a worker that has no thread, without its sleep.

        Returns the number of packets and chains that the round handled.  0: there
        was nothing to do, and the rings ask for kicks.
        """

    def calls_create(
        self, name: bytes, confine: int, poll_min: int, poll_max: int, ret: _CallsOut
    ) -> int:
        """Start a thread that passes calls on; the times are in nanoseconds."""

    def calls_destroy(self, calls: _CallsPtr) -> None:
        """End the thread and free everything."""

    def calls_add(self, calls: _CallsPtr, index: int, conf: _Struct) -> int:
        """Pass the calls of a ring on, and make its kicks: struct calls_conf.

        -EINVAL: an address has the wrong alignment, or there is no such ring; -EBUSY:
        it was added before.
        """

    def calls_remove(self, calls: _CallsPtr, index: int) -> None:
        """Pass the calls of a ring on no longer, after the last one."""

    def calls_read(self, calls: _CallsPtr, index: int, ret: _CallsStats) -> int:
        """Fill a struct calls_stats."""

    def confine_thread(self) -> int:
        """Leave the calling thread the system calls of a worker; return 0 or -errno."""

    def confine_probe(self) -> int:
        """Return 0 if this machine has what worker_conf.confine asks for, or -errno."""

    def uring_probe(self) -> int:
        """Return 0 if this machine has what worker_conf.io_uring asks for, or -errno.

        -EOPNOTSUPP: the kernel is older than 5.11.
        """

    def guard_open(self, address: int, size: int, fd: int) -> int:
        """Survive the loss of a mapping.  Returns the guard's number.

        fd is an eventfd that is written to when the memory is lost; it stays the
        caller's.  -EINVAL: no mapping can be there; -ENOSPC: there are 4096.
        """

    def guard_close(self, number: int) -> int:
        """Guard a mapping no longer."""

    def guard_lost(self, number: int) -> int:
        """Return 1 if the guarded memory is lost, else 0."""

ffi: _FFI
lib: _Lib
