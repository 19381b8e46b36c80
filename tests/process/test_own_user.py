# SPDX-License-Identifier: Apache-2.0
"""A daemon without any privilege does what one of root's does."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.attach import AttachLab
from tests.process.kept import replace, serving
from tests.process.lab import ATTACH
from tests.process.own_user import UID, OwnUserLab
from tests.vm import wheels
from tests.waiting import wait_for

pytestmark = pytest.mark.process


class OwnUserAttachLab(OwnUserLab, AttachLab):
    """The same in attach mode."""


@pytest.fixture(scope="module")
def packages() -> Path:
    """The daemon as installed; it is made where there is a network."""
    return wheels.host_packages()


@pytest.fixture
def lab(packages: Path, tmp_path: Path) -> Iterator[OwnUserLab]:
    with private_network(), OwnUserLab(tmp_path, packages) as lab:
        yield lab


def privileges(pid: int) -> dict[str, str]:
    """Return what /proc says of the privileges of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = dict(line.split(":\t", 1) for line in lines)
    return {name: words[name] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs")}


def test_packets_cross_and_go_on_when_the_daemon_is_killed(lab: OwnUserLab) -> None:
    lab.start_daemon("--keeper", "auto")
    uids = "\t".join([str(UID)] * 4)
    none = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    for pid in (lab.daemon.process.pid, serving(lab)):
        assert privileges(pid) == {"Uid": uids, **none}
    lab.start_master()
    lab.start_agent()
    lab.wait_carrier("NO-CARRIER")
    lab.master.load()
    lab.wait_carrier("UP")
    assert lab.ping_from_master() == 5
    for _ in range(2):
        replace(lab)
        assert lab.ping_from_slave() == 5
    assert "front-end disconnected" not in lab.daemon.log
    assert lab.daemon.end() == 0
    assert lab.files() == ["net0"]


def test_arena_of_a_killed_daemon_is_taken_over(lab: OwnUserLab) -> None:
    daemon = lab.start_daemon()
    before = lab.arena.stat().st_ino
    daemon.end(signal.SIGKILL)
    lab.start_daemon("--prealloc")
    assert lab.arena.stat().st_ino == before
    assert lab.arena.stat().st_uid == UID


def test_arena_that_was_cut_is_made_whole(lab: OwnUserLab) -> None:
    lab.start_daemon()
    size = lab.arena.stat().st_size
    os.truncate(lab.arena, 4096)
    wait_for(lambda: lab.arena.stat().st_size == size, lambda: lab.daemon.log)
    lab.daemon.wait_log("another process cut")


def test_socket_that_was_taken_is_made_again(lab: OwnUserLab) -> None:
    lab.start_daemon()
    socket = lab.run_dir / "net0.vhost-user"
    socket.unlink()
    wait_for(socket.is_socket, lambda: lab.daemon.log)


def test_group_that_the_user_is_not_in_is_refused(lab: OwnUserLab) -> None:
    daemon = lab.start_server(lab.daemon_argv("--socket-group", "tty"))
    assert daemon.wait() == 1
    assert "Operation not permitted" in daemon.log


def test_masters_with_their_own_memory(packages: Path, tmp_path: Path) -> None:
    with private_network(), OwnUserAttachLab(tmp_path, packages) as lab:
        lab.start_daemon(*ATTACH, "--keeper", "auto")
        lab.start_agent()
        with lab.attached(7 << 20, 25 << 20):
            assert lab.ping_from_master() == 5
            replace(lab)
            assert lab.ping_from_master() == 5
        assert lab.daemon.end() == 0
