# SPDX-License-Identifier: Apache-2.0
"""`doctor` beside a daemon and an agent that run, and with faults of a real machine.

The unit tests have the other faults: each is seeded on a machine in memory.
"""

import sys
from pathlib import Path

import pytest

from tests.findings import Findings, at, good, parse
from tests.process.lab import Lab
from tests.waiting import wait_for

pytestmark = pytest.mark.process

PEERS = ("master", "slave", "agent", "agent-version", "agent-heartbeat")
"""Checks of who is connected."""


def ask_host(lab: Lab) -> tuple[int, Findings]:
    """Return the exit status of `vhostpci-host doctor`, and what it has found."""
    done = lab.run_host("doctor", "net0", "-j")
    assert done.stdout, done.stderr
    return done.returncode, parse(done.stdout)


def replace(path: Path) -> None:
    """Put another file into the place of one."""
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


def test_doctor_finds_nothing_wrong_and_then_what_another_process_did(lab: Lab) -> None:
    lab.start_daemon()
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    lab.wait_state("running")
    # The status of a device that has just begun to run may be older than that.
    wait_for(
        lambda: good(ask_host(lab)[1], *PEERS),
        lambda: str({name: ask_host(lab)[1][name] for name in PEERS}),
    )

    status, found = ask_host(lab)
    # This machine may have no QEMU.
    assert at("error", found) <= {"qemu-version", "qemu-ivshmem"}
    assert status == bool(at("error", found))
    assert good(found, "daemon", "daemon-version", "device", "directories", "rings")
    assert good(found, "socket-place", "memory-place", "memory-room", "memory-size")
    in_slave = (sys.executable, "-m", "vhostpci_guest", "doctor", "-j")
    guests = parse(lab.run_in_slave(*in_slave).stdout)
    # Agents of other tests may come and go meanwhile, and not answer.
    assert good(guests, "architecture", "tun", "device")
    assert any(one["level"] == "ok" for one in guests["agent"])
    assert lab.ping_from_master(2) == 2, "doctor has disturbed the rings"

    known = at("error", found)
    lab.run_dir.chmod(0o777)
    replace(lab.arena)
    status, found = ask_host(lab)
    assert status == 1
    assert at("error", found) - known == {"directories", "memory-place"}
