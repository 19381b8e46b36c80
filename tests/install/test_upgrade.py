# SPDX-License-Identifier: Apache-2.0
"""Upgrade and removal of our Debian packages, with systemd in namespaces.

Master ---- vhostpci-host.service, device net0 ---- vhostpci-guest.service, TAP vp0
10.9.0.1                                                                  10.9.0.2

The master is a card in this process, with the daemon's arena as its memory.
"""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.install import packages, systemd_image
from tests.pings import lost, wait_late_replies
from tests.process.lab import SLAVE_ADDRESS, set_up_master
from tests.process.master import Master, Ram
from tests.process.program import Program
from tests.process.systemd_machine import Machine, machine
from tests.waiting import wait_for
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.debs

AGENT, HOST = "vhostpci-guest", "vhostpci-host"
PACKAGES = ("python3-vhostpci-shared", AGENT, HOST)

ARENA = "/dev/shm/vhostpci/net0"

# AppArmor is this machine's, and has no profile of ours.
DROP_IN = "[Service]\nSupplementaryGroups=kvm\nAppArmorProfile=\n"
FILES = {
    "/etc/vhostpci.toml": 'socket-group = "kvm"\n[device.net0]\nmemory = "16M"\n',
    "/etc/vhostpci/guest.toml": 'socket = "/run/vhostpci/net0.ivshmem"\ntap = "vp0"\n'
    f'address = "{SLAVE_ADDRESS}/24"\n',
    f"/etc/systemd/system/{AGENT}.service.d/groups.conf": DROP_IN,
    f"/etc/systemd/system/{HOST}.service.d/groups.conf": DROP_IN,
}
CHANGED = ("/etc/vhostpci.toml", "/etc/vhostpci/guest.toml")
"""Configuration files of the packages that the administrator has changed."""

UNTOUCHED = "/etc/default/vhostpci-guest"
"""One that she has not."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Machine]:
    """A machine with both packages, whose agent serves the daemon's device."""
    root = systemd_image.root_of(systemd_image.build("bookworm", tmp_path))
    with private_network(), machine("bookworm", FILES, root) as booted:
        booted.run("systemctl", "start", HOST, AGENT)
        wait_for(lambda: "TAP vp0 for" in booted.journal(), booted.journal)
        yield booted


def tap(booted: Machine) -> str:
    """Return the TAP's number and addresses; nothing if there is none."""
    return (
        booted.attempt("ip", "-o", "-4", "addr", "show", "vp0").stdout
        + (booted.attempt("ip", "-o", "link", "show", "vp0").stdout.partition(":")[0])
    )


def upgrade(served: Machine, place: Path) -> None:
    """Install newer packages, and wait until daemon and agent have successors."""
    pids = [served.show(unit, "MainPID") for unit in (AGENT, HOST)]
    assert not served.path(UNTOUCHED).read_text().endswith(packages.ADDED)
    names = []
    for name in PACKAGES:
        newer = packages.upgraded(name, place)
        served.path(f"/root/{newer.name}").write_bytes(newer.read_bytes())
        names.append(f"/root/{newer.name}")
    # As an administrator answers who wants to keep what she has changed.
    served.run("dpkg", "--force-confold", "-i", *names)
    for path in CHANGED:
        assert served.path(path).read_text() == FILES[path]
        assert served.path(f"{path}.dpkg-dist").read_text().endswith(packages.ADDED)
    assert served.path(UNTOUCHED).read_text().endswith(packages.ADDED)
    wait_for(lambda: "was left by an earlier agent" in served.journal(), served.journal)
    wait_for(lambda: "goes on where an earlier" in served.journal(), served.journal)
    assert not {served.show(unit, "MainPID") for unit in (AGENT, HOST)} & {*pids}


@contextmanager
def connected(served: Machine) -> Iterator[Master]:
    """A master whose card is up, with an address."""
    memory = Ram.of_arena(served.path(ARENA), 16 << 20)
    with Master(served.path("/run/vhostpci/net0.vhost-user"), memory) as master:
        set_up_master("10.9.0.1")
        master.load()
        wait_for(answers, served.journal)
        yield master


def answers() -> bool:
    """Whether the slave answers a ping."""
    argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", SLAVE_ADDRESS]
    return not subprocess.run(argv, stdout=subprocess.DEVNULL).returncode


@contextmanager
def pings_cross(log: Path) -> Iterator[None]:
    """Ping the slave fifty times a second while the block runs; see `packages.LOST`."""
    pings = Program(["ping", "-n", "-i", "0.02", SLAVE_ADDRESS], log)
    try:
        yield
        wait_late_replies(pings)
        pings.end(signal.SIGINT)
        assert lost(pings.log) <= packages.LOST, pings.log
    finally:
        pings.close()


def test_master_runs_on_through_an_upgrade(served: Machine, tmp_path: Path) -> None:
    with connected(served) as master:
        session = master.frontend
        with pings_cross(tmp_path / "pings.log"):
            upgrade(served, tmp_path)
        # The connection is the same.
        session.ask(Request.GET_FEATURES)


def test_master_keeps_its_memory_through_removal_and_purge(served: Machine) -> None:
    keep = (
        f"import mmap, time; f = open('{ARENA}', 'r+b'); m = mmap.mmap(f.fileno(), 0)"
    )
    keep += "; print('mapped', flush=True); time.sleep(1000)"
    before = served.path(ARENA).stat().st_ino
    command = served.command("python3", "-c", keep)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdout
        assert qemu.stdout.readline() == "mapped\n"
        served.run("dpkg", "--remove", HOST)
        assert served.path(ARENA).stat().st_ino == before
        said = served.run("dpkg", "--purge", HOST)
        assert f"left {ARENA} alone" in said
        assert served.path(ARENA).stat().st_ino == before
        assert qemu.poll() is None
        qemu.kill()


def test_upgrade_leaves_all_to_successors_and_purge_leaves_nothing(
    served: Machine, tmp_path: Path
) -> None:
    served.run("ip", "addr", "add", "10.88.0.2/24", "dev", "vp0")
    before = tap(served)
    upgrade(served, tmp_path)
    assert tap(served) == before
    served.run("dpkg", "--purge", AGENT, HOST)
    assert "does not exist" in tap(served)
    for place in ("/dev/shm/vhostpci", "/run/vhostpci", *CHANGED, UNTOUCHED):
        assert not served.path(place).exists()
