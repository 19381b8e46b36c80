# SPDX-License-Identifier: Apache-2.0
"""The data plane vhost-user: another process serves the rings.

Theory of operation.  The agent is the front-end, as a QEMU is for a VM, with the
master's memory in place of its own.  The back-end maps the files behind the windows,
takes the vectors' eventfds as kicks, and signals the calls.  Nothing of ours touches a
packet, and nothing of ours protects a ring: the back-end checks no session.  So it must
stop whenever the agent does not know that the ring is its own:

    a ring is taken back          GET_VRING_BASE, and the answer; 0.6 s at most
    the memory is another one     its connection is closed
    the daemon is silent          as with a ring, after 0.6 s (`silent_ticks`)
    the agent dies                its connection is closed, by Linux

The used index in the master's memory is where a ring goes on.  The index that the
back-end names at the stop is what it has taken; buffers between the two are given to
the next back-end again.
"""

import logging
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from vhostpci_shared.errors import Said, code_of, said
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.wire import ProtocolError

from ..call_thread import CallThread
from ..interface import (
    MemRegion,
    RingConf,
    RingRefused,
    RingStatus,
    Stats,
    Stopping,
    locate,
    used_index,
)
from .approach import Approach
from .messages import check_areas
from .pause import Pause
from .session import Session

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Ring:
    conf: RingConf
    counted: bool
    """Whether our thread counts its calls."""
    state: AgentRingState = AgentRingState.RUNNING
    asked: bool = False
    """Whether the back-end was asked to stop it."""
    index: int = 0
    index_known: bool = True
    reason: str = ""

    def stop(self, index: int, *, known: bool, reason: str = "") -> None:
        """Note that nothing touches the ring any more."""
        self.state, self.index = AgentRingState.STOPPED, index
        self.index_known, self.reason = known, reason


class VhostUserPlane:
    """A `DataPlane` that hands the rings to a back-end.

    Args:
        approach: brings back-ends; it stays the caller's.
        device: the device's name, for the log.
        pairs: its queue pairs.
        mtu: returns the MTU that the master was told; 0 if it was told none.
        calls: passes calls on; ours to close.
    """

    silent_ticks = 4

    def __init__(
        self,
        approach: Approach,
        device: str,
        pairs: int,
        *,
        mtu: Callable[[], int],
        calls: CallThread,
    ) -> None:
        self._approach = approach
        self._device = device
        self._pairs = pairs
        self._mtu = mtu
        self._calls = calls
        self._regions: tuple[MemRegion, ...] = ()
        self._rings: dict[int, _Ring] = {}
        self._session: Session | None = None
        self._pause = Pause()
        self._offers: int | None = None
        self._problem = ""
        """What the last back-end did wrong."""
        self._told: set[str] = set()
        """What was logged since a back-end was sound."""
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}
        self._watch()

    def fileno(self) -> int:
        return self._epoll.fileno()

    # What the back-end says.

    def look(self) -> bool:
        """Hear the back-end; return whether rings may have stopped by themselves."""
        lost = self._hear(self._look_at_session)
        self._take()
        self._watch()
        return lost

    def tick(self) -> None:
        """Count a tick for all time limits."""
        connected = self._session is not None and not self._leaving
        # Its rings are found stopped right after this, by their status.
        self._hear(self._tick_of_session)
        self._pause.tick(connected=connected)
        if self._pause.sound:
            self._told.clear()
        self._approach.tick()
        self._take()
        if self._session is not None and self._approach.fileno() is not None:
            self._turn_away(self._session)
        self._watch()

    def _look_at_session(self, session: Session) -> None:
        session.look()
        if session.back_end is not None and self._offers != session.back_end.offers:
            self._offers = session.back_end.offers

    def _tick_of_session(self, session: Session) -> None:
        session.tick()

    def _hear(self, do: Callable[[Session], None]) -> bool:
        """Do something with the session; return whether it has ended by that."""
        session = self._session
        if session is None:
            return False
        try:
            do(session)
        except EOFError as why:
            self._lose(session, str(why) or "it is gone", at_fault=False)
        except ProtocolError as why:
            self._lose(session, said(why), at_fault=True)
        else:
            return False
        return True

    def _lose(self, session: Session, why: str, *, at_fault: bool) -> None:
        """End a session; its rings have stopped by themselves."""
        text = Said(f"the back-end at {self._approach.path}: {why}", code_of(why))
        # One that leaves does what it was told: its fault, and the pause, are known.
        if not session.leaving:
            self._say(text, session, at_fault=at_fault)
            self._problem = text if at_fault else ""
            self._pause.begin(at_fault=at_fault)
        stays = at_fault and self._runs_any and not session.leaving
        self._stop_all(text)
        if stays:
            # It may still write into the rings.
            session.leave()
        else:
            self._close_session()

    @property
    def _runs_any(self) -> bool:
        return any(r.state is AgentRingState.RUNNING for r in self._rings.values())

    def _stop_all(self, reason: str) -> None:
        for index, ring in self._rings.items():
            if ring.state is AgentRingState.RUNNING:
                self._stopped(index, ring, known=False, reason=reason)

    def _stopped(
        self, index: int, ring: _Ring, *, known: bool, reason: str = ""
    ) -> None:
        """Note that the back-end does not use a ring any more."""
        at = used_index(ring.conf.device, self._regions)
        ring.stop(at, known=known, reason=reason)
        self._calls.remove(index)

    def _close_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            try:
                self._unwatch(session.fileno())
            finally:
                session.close()

    # Back-ends that come.

    def _take(self) -> None:
        """Take a back-end that has come, unless there is one."""
        if self._session is None and self._pause.over:
            connection = self._approach.take()
            if connection is not None:
                self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        session = self._session = Session(connection)
        if self._hear(Session.begin):
            return
        self._say(f"a back-end at {self._approach.path}", session, at_fault=False)

    def _turn_away(self, session: Session) -> None:
        """Hang up on a second back-end."""
        # A lack of descriptors must not stop the first one.
        with suppress(OSError):
            connection = self._approach.take()
            if connection is None:
                return
            connection.close()
            self._say(
                f"a second back-end at {self._approach.path} is turned away, as there "
                "is one",
                session,
                at_fault=True,
            )

    def _say(self, text: str, session: Session, *, at_fault: bool) -> None:
        """Log what happens with a back-end; debug what was said since one was sound.

        One that comes and goes must not fill the log.
        """
        level = logging.WARNING if at_fault else logging.INFO
        if text in self._told:
            level = logging.DEBUG
        self._told.add(text)
        log.log(level, "%s: %s (pid %d)", self._device, text, session.pid)

    # What is watched.

    def _watch(self) -> None:
        """Have `fileno` readable when there is something to do."""
        wanted: dict[int, int] = {}
        listener = self._approach.fileno()
        # One that comes at another time waits for a tick; it would wake the agent all
        # the time.
        free = self._session is None and self._pause.over
        if listener is not None and free:
            wanted[listener] = select.EPOLLIN
        if self._session is not None:
            events = 0 if self._session.leaving else select.EPOLLIN
            if self._session.unsent:
                events |= select.EPOLLOUT
            wanted[self._session.fileno()] = events
        for fd in self._watched.keys() - wanted.keys():
            self._unwatch(fd)
        for fd, events in wanted.items():
            if fd not in self._watched:
                self._epoll.register(fd, events)
            elif events != self._watched[fd]:
                self._epoll.modify(fd, events)
        self._watched = wanted

    def _unwatch(self, fd: int) -> None:
        # Before it is closed: its number may be another descriptor's then.
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # What the link asks.

    @property
    def offers(self) -> int | None:
        return self._offers

    @property
    def waiting(self) -> str:
        path, session = self._approach.path, self._session
        if session is None and self._problem and not self._pause.over:
            return f"{self._problem}; one is taken again soon"
        # Also while one is saying what it can do, which takes it milliseconds.
        if session is None or (session.back_end is None and not session.leaving):
            problem = self._approach.problem
            return f"no back-end at {path}" + (f": {problem}" if problem else "")
        who = f"the back-end at {path} (pid {session.pid})"
        if session.leaving or session.back_end is None:
            return f"{who} was told to go, and still has the memory: end it"
        problem = session.back_end.problem(self._pairs, self._regions)
        if problem:
            return f"{who} cannot serve: {problem}"
        return self._memory_problem()

    def _memory_problem(self) -> str:
        for region in self._regions:
            if region.file is None:
                return (
                    "there is no file of the master's memory that another process "
                    f"could map: {region.no_file or 'use another binding'}"
                )
        return ""

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        given = self._session.memory if self._session is not None else None
        self._regions = tuple(regions)
        if given is not None and given != self._regions and not self._leaving:
            log.info(
                "%s: the master's memory is another one: the back-end at %s has to "
                "connect again",
                *(self._device, self._approach.path),
            )
            self._close_session()
            self._watch()

    @property
    def _leaving(self) -> bool:
        return self._session is not None and self._session.leaving

    def start(self, index: int, conf: RingConf) -> None:
        signals = self._calls.add(
            index,
            kick_fd=conf.kick_fd,
            call=conf.call,
            owns_kick=conf.owns_kick,
            avail_idx_addr=_avail_idx_address(conf, self._regions),
        )
        session, waiting = self._session, self.waiting
        try:
            check_areas(conf, self._regions)
            if waiting:
                raise RingRefused(waiting, AgentRingState.STOPPED, code="R040")
        except RingRefused:
            self._calls.remove(index)
            raise
        assert session is not None, "it is not awaited"
        assert session.back_end is not None, "it has said what it can do"
        back_end = session.back_end
        self._rings[index] = _Ring(conf, signals.counted)

        def begin(session: Session) -> None:
            session.set_up(conf.features, self._regions, self._mtu(), back_end)
            session.start(index, conf, signals, back_end)

        self._hear(begin)
        self._watch()

    def stop(self, index: int) -> int:
        ring = self._rings.get(index)
        if ring is None:
            return 0
        if ring.state is AgentRingState.RUNNING and not ring.asked:
            ring.asked = True
            self._hear(lambda session: session.stop(index))
            self._watch()
        if ring.state is AgentRingState.RUNNING:
            self._note_stop(index, ring)
        return ring.index

    def _note_stop(self, index: int, ring: _Ring) -> None:
        """Note that the back-end has stopped a ring.

        Raises:
            Stopping: it has not.
        """
        session = self._session
        assert session is not None, "a ring that runs has a session"
        if index not in session.stopped:
            raise Stopping
        self._stopped(index, ring, known=True)
        if session.stopped[index] != ring.index:
            log.info(
                "%s: ring %d: the back-end has taken buffers up to %d and returned "
                "those up to %d: the others are given again",
                *(self._device, index, session.stopped[index], ring.index),
            )

    def status(self, index: int) -> RingStatus:
        ring = self._rings.get(index)
        if ring is None:
            return RingStatus()
        if ring.state is AgentRingState.RUNNING:
            ring.index = used_index(ring.conf.device, self._regions)
        calls, _ = self._calls.counts(index) if ring.counted else (0, 0)
        return RingStatus(
            state=ring.state,
            index=ring.index,
            index_known=ring.index_known,
            reason=ring.reason,
            stats=Stats(calls=calls),
        )

    def summary(self) -> dict[str, Any]:
        session = self._session
        return {
            "back_end": session.status() if session is not None else None,
            "not_counted": self._not_counted(),
        }

    def _not_counted(self) -> list[str]:
        """Return the names of the counts, as in the status, that stay at 0."""
        names = ["packets", "octets", "drops", "kicks"]
        counted = [ring.counted for ring in self._rings.values()]
        return names if counted and all(counted) else [*names, "calls"]

    def close(self) -> None:
        # Each step runs even if another fails.  The last entry runs first.
        with ExitStack() as undo:
            undo.callback(self._epoll.close)
            undo.callback(self._calls.close)
            undo.callback(self._close_session)


def _avail_idx_address(conf: RingConf, regions: Sequence[MemRegion]) -> int:
    """Return where the ring's avail idx is mapped; 0 if it is not in the memory."""
    at = conf.driver + 2  # VIRTIO, "The Virtqueue Available Ring": le16 flags, le16 idx
    found = locate(at, 2, regions) if at % 2 == 0 else None
    return 0 if found is None else found
