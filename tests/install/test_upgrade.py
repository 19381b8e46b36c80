# SPDX-License-Identifier: Apache-2.0
"""Upgrade and removal of our Debian packages, with systemd in namespaces.

vhostpci-host.service, with the device net0 ---- vhostpci-guest.service, TAP vp0
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import packages, systemd_image
from tests.process.systemd_machine import Machine, machine
from tests.waiting import wait_for

pytestmark = pytest.mark.debs

AGENT, HOST = "vhostpci-guest", "vhostpci-host"
PACKAGES = ("python3-vhostpci-shared", AGENT, HOST)

# AppArmor is this machine's, and has no profile of ours.
DROP_IN = "[Service]\nSupplementaryGroups=kvm\nAppArmorProfile=\n"
FILES = {
    "/etc/vhostpci.toml": 'socket-group = "kvm"\n[device.net0]\nmemory = "16M"\n',
    "/etc/vhostpci/guest.toml": 'socket = "/run/vhostpci/net0.ivshmem"\ntap = "vp0"\n',
    f"/etc/systemd/system/{AGENT}.service.d/groups.conf": DROP_IN,
    f"/etc/systemd/system/{HOST}.service.d/groups.conf": DROP_IN,
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Machine]:
    """A machine with both packages, whose agent serves the daemon's device."""
    root = systemd_image.root_of(systemd_image.build("bookworm", tmp_path))
    with machine("bookworm", FILES, root) as booted:
        booted.run("systemctl", "start", HOST, AGENT)
        wait_for(lambda: "TAP vp0 for" in booted.journal(), booted.journal)
        yield booted


def tap(booted: Machine) -> str:
    """Return the TAP's number and addresses; nothing if there is none."""
    return (
        booted.attempt("ip", "-o", "-4", "addr", "show", "vp0").stdout
        + (booted.attempt("ip", "-o", "link", "show", "vp0").stdout.partition(":")[0])
    )


def test_upgrade_leaves_all_to_successors_and_purge_leaves_nothing(
    served: Machine, tmp_path: Path
) -> None:
    served.run("ip", "addr", "add", "10.88.0.2/24", "dev", "vp0")
    before = tap(served)
    pids = [served.show(unit, "MainPID") for unit in (AGENT, HOST)]
    names = []
    for name in PACKAGES:
        newer = packages.upgraded(name, tmp_path)
        served.path(f"/root/{newer.name}").write_bytes(newer.read_bytes())
        names.append(f"/root/{newer.name}")
    # The files in /etc that the test has changed stay.
    served.run("dpkg", "--force-confold", "-i", *names)
    wait_for(lambda: "was left by an earlier agent" in served.journal(), served.journal)
    wait_for(lambda: "goes on where an earlier" in served.journal(), served.journal)
    assert tap(served) == before
    assert not {served.show(unit, "MainPID") for unit in (AGENT, HOST)} & {*pids}
    served.run("dpkg", "--purge", AGENT, HOST)
    assert "does not exist" in tap(served)
    for place in ("/dev/shm/vhostpci", "/run/vhostpci", "/etc/vhostpci.toml"):
        assert not served.path(place).exists()
