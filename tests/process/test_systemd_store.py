# SPDX-License-Identifier: Apache-2.0
"""systemd keeps the daemon's descriptors: a program of ours stands in its place.

test: notify socket, descriptor store ──LISTEN_FDS──► vhostpci-host ◄── front-end
              ▲                                            │
              └────── FDSTORE=1, FDNAME=, FDPOLL=0 ────────┘
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.frontend import Dropped, FrontEnd, RingAt, Socket, region
from tests.process.lab import ARENA, MEMORY
from tests.process.program import Program
from tests.waiting import wait_for
from vhostpci_host.fds import Fd, identity
from vhostpci_host.keeper import notices
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.process

EXECUTE = """
import json, os, sys
kept = json.loads(sys.argv[1])
for place, (name, number) in enumerate(kept, start=3):
    os.dup2(number, place)
os.environ |= {
    "LISTEN_PID": str(os.getpid()),
    "LISTEN_FDS": str(len(kept)),
    "LISTEN_FDNAMES": ":".join(name for name, _ in kept),
}
os.execv(sys.executable, [sys.executable, "-m", "vhostpci_host", *sys.argv[2:]])
"""


class Systemd:
    """What systemd does for a service with FileDescriptorStoreMax=."""

    def __init__(self, directory: Path) -> None:
        self.run_dir, self.log = directory / "run", directory / "log"
        self._memory_dir = directory / "memory"
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(self._path))
        self._socket.setblocking(False)
        self.store: dict[str, Fd] = {}
        self.said: list[str] = []
        self._program: Program | None = None

    def start(self) -> Program:
        """Start the service, and wait until it says that it is ready."""
        # Above the numbers that they are to have in the service.
        moved = [
            (name, Fd(os.dup2(fd.fileno(), 500 + place)))
            for place, (name, fd) in enumerate(self.store.items())
        ]
        numbers = [(name, fd.fileno()) for name, fd in moved]
        words = [
            "run",
            "net0",
            "--keeper",
            "auto",
            *ARENA,
            "--run-dir",
            str(self.run_dir),
        ]
        words += ["--memory-dir", str(self._memory_dir)]
        os.environ |= {"NOTIFY_SOCKET": str(self._path), "FDSTORE": "1000"}
        try:
            program = self._program = Program(
                [sys.executable, "-c", EXECUTE, json.dumps(numbers), *words],
                self.log,
                fds=[number for _, number in numbers],
            )
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["FDSTORE"]
            for _, fd in moved:
                fd.close()
        ready = self.said.count("READY")
        wait_for(lambda: self.take().count("READY") > ready, lambda: program.log)
        return program

    def take(self) -> list[str]:
        """Act on the notices that have come; return the names of all lines so far."""
        while True:
            try:
                notice, fds = notices.receive(self._socket)
            except BlockingIOError:
                return self.said
            said = notices.parse(notice)
            self.said += said
            name = said.get("FDNAME", "stored")
            for number in fds:
                self._keep(name, Fd(number), said)
            if said.get("FDSTOREREMOVE") == "1" and name in self.store:
                self.store.pop(name).close()

    def _keep(self, name: str, fd: Fd, said: Mapping[str, str]) -> None:
        known = {identity(one) for one in self.store.values()}
        # systemd keeps one descriptor of each open file.
        if said.get("FDSTORE") != "1" or identity(fd) in known:
            fd.close()
            return
        assert said["FDPOLL"] == "0"
        self.store[name] = fd

    def close(self) -> None:
        if self._program is not None:
            self._program.close()
        self._socket.close()
        while self.store:
            self.store.popitem()[1].close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with closing(Systemd(tmp_path)) as systemd:
        yield systemd


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2],
    ids=lambda number: number.name,
)
def test_front_end_goes_on_over_the_services_restart(
    systemd: Systemd, tmp_path: Path, number: signal.Signals
) -> None:
    program = systemd.start()
    front_end = FrontEnd(Socket(systemd.run_dir / "net0.vhost-user"), [])
    arena = Fd(os.open(tmp_path / "memory" / "net0", os.O_RDWR))
    with arena, front_end:
        front_end.regions = [(region(MEMORY), arena.fileno())]
        front_end.connect()
        front_end.driver_ok([RingAt.nth(0), RingAt.nth(1)])
        front_end.ask(Request.GET_FEATURES)
        status = program.end(number)
        assert status == {signal.SIGTERM: 0, signal.SIGUSR2: 75}.get(number, -9)
        systemd.take()
        program = systemd.start()
        front_end.ask(Request.GET_FEATURES)
        assert [front_end.stop_ring(index) for index in range(2)] == [0, 0]
        wait_for(lambda: "WATCHDOG" in systemd.take(), "it says that it lives")
        assert "goes on where an earlier daemon has ended" in program.log
        assert "front-end disconnected" not in program.log
        # At a stop for good, systemd closes what it has.
        program.end(signal.SIGTERM)
        systemd.close()
        with pytest.raises(Dropped):
            front_end.ask(Request.GET_FEATURES)
