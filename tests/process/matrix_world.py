# SPDX-License-Identifier: Apache-2.0
"""The programs that a walk of the matrix ends and starts, and what is seen of them."""

import os
import re
import select
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.descriptors import open_descriptors
from tests.fakes.frontend import Dropped, Socket
from tests.process.lab import MEMORY, SLAVE_ADDRESS, Lab, ip
from tests.process.master import TAP as MASTER_TAP
from tests.process.master import Ram
from tests.process.matrix_model import Life, Model, Plan
from tests.process.program import Program, ask_status, run
from tests.process.traffic import Traffic
from tests.processes import children, stop
from tests.waiting import wait_for
from vhostpci_host.daemon.control_client import ask
from vhostpci_host.errors import HostError

SLAVE_MAC = "02:00:00:00:09:02"
ASK_TIMEOUT = 20.0


LAST_LINES = 40
"""Lines of a log that a failure shows."""
LINE = re.compile(r"[-0-9]{10} [0-9:,]+ (?P<level>[A-Z]) (?P<text>.*)")
EXPECTED = (
    ("daemon SIGSTOP", r"keeper: the daemon \(pid \d+\) hangs: .*"),
    ("daemon SIGSTOP", r"keeper: the daemon \(pid \d+\) was killed by signal 9: .*"),
    ("daemon and", r"keeper: the daemon \(pid \d+\) was killed by signal 9: .*"),
    ("daemon kill", r"keeper: the daemon \(pid \d+\) was killed by signal 9: .*"),
    ("daemon SIGUSR2", r"keeper: the daemon \(pid \d+\) makes room: .*"),
    # Both also on a machine so loaded that the agent gets no processor.
    ("", r"net0: the agent did not stop within 1 s.*"),
    ("", r"net0: the agent has said nothing for .*"),
    ("keeper kill", r"the keeper is gone.*"),
    ("stranger", r"net0: (front-end|slave) \(pid \d+\) refused: .*"),
    ("agent is replaced", r"net0: slave \(pid \d+\) refused: .*"),
    ("agent", r"net0: front-end \(pid \d+\) dropped: there has been no agent .*"),
    ("agent", r"net0: the master's card keeps its carrier although .*"),
    ("everything", r"net0: the master's card keeps its carrier although .*"),
    ("", r"net0: ring \d is to start at 0x[0-9a-f]+, and stands at 0x[0-9a-f]+"),
    ("agent", r"net0: .*nothing says where it stands.*"),
)
"""By the first words of an event: the warnings and errors that it causes."""
AGENT_SAYS = re.compile(r"vhostpci-guest: .*")


class World(Lab):
    """The lab, with traffic on, and with what the model's events do to it."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        super().__init__(directory)
        self.plan = plan
        self._file = directory / "vms.toml"
        self.write_file()
        self.serving = 0
        """The process of the daemon that serves; 0 without one."""
        self._has_device = True
        self._hung: set[int] = set()
        self._read: Counter[Program] = Counter()
        self._first_memory: dict[int, int] = {}

    def __enter__(self) -> Self:
        echo = [*self.slave.prefix, sys.executable, "-m", "tests.process.echo"]
        self._start("echo", echo).wait_log("ready")
        self.traffic = self._stack.enter_context(Traffic(SLAVE_ADDRESS))
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._hung:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.serving:  # its keeper may have been killed
            with suppress(ProcessLookupError):
                os.kill(self.serving, signal.SIGKILL)
        super().__exit__(*_)

    # The daemon.

    @property
    def _grace(self) -> str:
        return f'carrier-grace = "{self.plan.grace}"\n'

    def write_file(self, more: str = "") -> None:
        """Write the daemon's file, with `more` at its end."""
        memory = 'mode = "attach"' if self.plan.attach else f'memory = "{MEMORY}"'
        self._file.write_text(
            f'run-dir = "{self.run_dir}"\nmemory-dir = "{self.memory_dir}"\n'
            f"[device.net0]\n{memory}\n{self._grace}{more}"
        )

    def start_the_daemon(self) -> None:
        """Start it, with its keeper if the plan says so, and wait until it serves."""
        self._has_device = True
        command = [sys.executable, "-m", "vhostpci_host", "run"]
        options = ["--config", str(self._file), "--keeper", self.plan.keeper]
        daemon = self._daemon = self.start_run([*command, *options])
        wait_for(lambda: self._serves_after(0), lambda: daemon.log)

    def _serves_after(self, before: int) -> bool:
        """Whether another process than `before` serves; note which one."""
        assert self.daemon.process.poll() is None, self.daemon.log
        try:
            pid = self.command("pid")
            assert isinstance(pid, int)
            if self._has_device:
                ask_status(self.run_dir, "net0")
        except HostError:
            return False
        if pid != before:
            self.serving = pid
        return pid != before

    def signal_keeper(self, number: signal.Signals) -> None:
        """Send a signal to the keeper alone."""
        self._signal(self.daemon.process.pid, number)

    def wait_successor(self) -> None:
        """Wait until another process serves, with all devices of the file."""
        before = self.serving
        self._has_device = True
        wait_for(lambda: self._serves_after(before), lambda: self.daemon.log)

    def has_heir(self) -> bool:
        """Whether a successor waits."""
        return len(children(self.daemon.process.pid)) > 1

    def signal_daemon(self, number: signal.Signals) -> None:
        """Send a signal to the process that serves."""
        self._signal(self.serving, number)

    def end_daemon(self, number: signal.Signals) -> None:
        """Send a signal, and wait until no daemon and no keeper is left."""
        ends = [os.pidfd_open(self.serving)]
        self.signal_daemon(number)
        self.serving = 0
        try:
            self._wait_ends(ends)
        finally:
            for end in ends:
                os.close(end)

    def _wait_ends(self, ends: list[int]) -> None:
        wait_for(
            lambda: all(select.select([end], [], [], 0)[0] for end in ends),
            lambda: f"it ends:\n{self.daemon.log}",
        )

    def kill_keeper(self) -> None:
        """Kill the keeper; its daemon goes on, and an heir that waits ends."""
        pid = self.daemon.process.pid
        heirs = set(children(pid)) - {self.serving}
        ends = [os.pidfd_open(one) for one in heirs]
        try:
            os.kill(pid, signal.SIGKILL)
            self.daemon.wait()
            self._wait_ends(ends)
        finally:
            for end in ends:
                os.close(end)

    def command(self, verb: str, **words: object) -> object:
        """Have the daemon execute a command."""
        request = {"command": verb, **words}
        return ask(self.run_dir / "control", request, ASK_TIMEOUT)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        if number is signal.SIGSTOP:
            self._hung.add(pid)
            stop(pid)
        else:
            os.kill(pid, number)
            self._hung.discard(pid)

    def set_spare(self, *, there: bool) -> None:
        """Put another device into the file, or take it out; have the file read."""
        self.write_file('[device.spare]\nmemory = "16M"\n' if there else "")
        self.command("reload")

    def remove_device(self) -> None:
        """Remove the device."""
        self.command("remove", name="net0")
        self._has_device = False

    def add_device(self) -> None:
        """Add it again."""
        memory = {"memory": str(MEMORY)} if not self.plan.attach else {"mode": "attach"}
        options = {**memory, "carrier-grace": self.plan.grace}
        self.command("add", name="net0", options=options)
        self._has_device = True

    # The agent.

    def start_an_agent(self) -> Program:
        """Start an agent; it serves if no other one does."""
        keep = ("--keep-tap",) if self.plan.keep_tap else ()
        return self.start_agent("--mac", SLAVE_MAC, *keep)

    def agent_serves(self) -> bool:
        """Whether the daemon and the agent know each other."""
        status = ask_status(self.run_dir, "net0")
        slave, agent = status["slave"], status["agent"]
        ours = slave is not None and slave["pid"] == self.agent.process.pid
        return ours and agent["present"] and agent["state"] == "ready"

    def signal_agent(self, number: signal.Signals) -> None:
        """Send a signal to the agent."""
        self._signal(self.agent.process.pid, number)

    # The master.

    def start_the_master(self) -> None:
        """Start a machine; its memory is the arena or its own."""
        ram = Ram.of_nodes(MEMORY) if self.plan.attach else None
        self.start_master(ram, packed=self.plan.packed)
        # So that a lost question for it costs no second.
        ip("neigh", "replace", SLAVE_ADDRESS, "lladdr", SLAVE_MAC, "dev", MASTER_TAP)

    def hung_up(self) -> bool:
        """Whether the daemon has closed the master's connection."""
        transport = self.master.frontend.transport
        assert isinstance(transport, Socket)
        poll = select.poll()
        poll.register(transport.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def try_to_return(self) -> bool:
        """Have the master connect again, as QEMU does each second."""
        try:
            if self.master.card is None:
                self.master.reconnect()
            else:
                self.master.come_back()
        except (OSError, Dropped):
            return False
        return True

    def hang_master(self) -> None:
        """Stop its processors and its QEMU."""
        assert self.master.card is not None, "a machine with a driver"
        self.master.card.pause()

    def continue_master(self) -> None:
        """Have it go on after `hang_master`."""
        assert self.master.card is not None, "a machine with a driver"
        self.master.card.go_on()

    # Strangers.

    def visit(self, socket_name: str) -> None:
        """Have another process connect to a socket, read once, and leave."""
        code = (
            "import socket, sys; one = socket.socket(socket.AF_UNIX); "
            "one.settimeout(20); one.connect(sys.argv[1]); one.recv(8)"
        )
        path = str(self.run_dir / socket_name)
        done = run(sys.executable, "-S", "-E", "-c", code, path)
        assert not done.returncode, done.stderr

    # What is seen of them.

    def programs(self, model: Model) -> dict[str, int]:
        """Return the processes that must run, by what they are."""
        found = {}
        if model.daemon is Life.RUNS:
            found["daemon"] = self.serving
        if model.keeper:
            found["keeper"] = self.daemon.process.pid
        if model.agent is Life.RUNS:
            found["agent"] = self.agent.process.pid
        return found

    def unexpected_lines(self, events: Sequence[str]) -> list[str]:
        """Return what the programs have logged that they should not have."""
        found = []
        for program in self._programs:
            lines = program.log.splitlines()
            new = lines[self._read[program] :]
            self._read[program] += len(new)
            found += [line for line in new if not is_expected(line, events)]
        return found

    def logs(self) -> str:
        """Return the last lines of each program."""
        return "\n".join(
            "\n".join(program.log.splitlines()[-LAST_LINES:])
            for program in self._programs
        )

    def memory_growth(self, pid: int) -> int:
        """Return by how many bytes a process's memory has grown since the first call.

        Only the memory that is not shared with others.
        """
        status = Path(f"/proc/{pid}/status").read_text()
        words = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert words is not None, status
        now = int(words[1]) << 10
        return now - self._first_memory.setdefault(pid, now)


def is_expected(line: str, events: Sequence[str]) -> bool:
    """Whether a line of a log is one of a walk without a defect."""
    found = LINE.fullmatch(line)
    if found is None:
        return AGENT_SAYS.fullmatch(line) is not None or line == "ready"
    return found["level"] in "ID" or any(
        re.fullmatch(pattern, found["text"])
        and any(event.startswith(cause) for event in events)
        for cause, pattern in EXPECTED
    )


def kinds(pid: int) -> Counter[str]:
    """Return how many descriptors of each kind a process has."""
    # Without the directories and the numbers, which differ from walk to walk.
    found = Counter(
        re.sub(r"\[\d+\]|\d+", "", what.rpartition("/")[2])
        for what in open_descriptors(pid).values()
    )
    # A daemon watches a front-end that may come back, for ten seconds.
    found["anon_inode:[pidfd]"] -= 1
    return +found
