# SPDX-License-Identifier: Apache-2.0
"""The commands of the README files hold word by word, on a Debian just installed.

Debian 12, Debian 13: the hypervisor's commands; the slave's; the demo's
Debian 12 builds wheels ---> Debian 12, 13 and testing install them, without a compiler
"""

import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import fresh, offline, readme
from tests.install.fresh import SOURCES, FreshMachine
from tests.vm.image import CHECKOUT
from vhostpci_host.cli import qemu_args

pytestmark = [
    pytest.mark.install,
    pytest.mark.downloads,
    pytest.mark.timeout(1800),
]


@pytest.fixture(params=fresh.RELEASES.values())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FreshMachine]:
    """A Debian 12, then a Debian 13."""
    with fresh.machine(request.param, tmp_path) as found:
        yield found


def run_all(machine: FreshMachine, lines: list[str]) -> None:
    """Run commands one after the other, of which each must succeed."""
    for line in lines:
        machine.run(line)


def wait_for_socket(path: Path) -> None:
    """Wait until a program listens there."""
    for _ in range(300):
        if path.is_socket():
            return
        time.sleep(0.1)
    pytest.fail(f"no socket {path}")


def test_hypervisor_serves_a_card_by_the_commands(machine: FreshMachine) -> None:
    *install, serve = readme.commands("README.md", "**1. On the hypervisor**")
    run_all(machine, install)
    machine.run("/opt/vhostpci/bin/python -c 'import vhostpci_shared._relay'")
    text = (CHECKOUT / "README.md").read_text()
    asked = re.findall(r"\$\((vhostpci-host qemu-args [^)]*)\)", text)
    with machine.running(serve):
        wait_for_socket(machine.path(Path("/run/vhostpci/net0.control")))
        master, slave = (machine.run(command) for command in asked)
    assert "-device virtio-net-pci," in master
    assert "-device ivshmem-doorbell," in slave


def test_slave_waits_for_its_device_by_the_commands(machine: FreshMachine) -> None:
    *install, serve = readme.commands("README.md", "**3. In the slave**")
    run_all(machine, install)
    # Its own network, should this machine have a device for it.
    with machine.running(f"unshare --net {serve}") as agent:
        assert agent.stdout
        said = agent.stdout.readline()
    assert said == (
        "vhostpci-guest: no ivshmem device yet: waiting for one to be plugged\n"
    )


def test_master_finds_its_card_by_the_commands(machine: FreshMachine) -> None:
    """The card is a TAP, in a separate network."""
    *address, ping = readme.commands("README.md", "**4. In the master**")
    assert ping == "ping 10.0.0.2"
    machine.run("apt install iproute2 mawk")  # a stock Debian has them
    card = [
        "ip tuntap add enp0s2 mode tap",
        f"ip link set enp0s2 address {qemu_args.mac('net0')}",
    ]
    script = "\n".join([*card, *address, "ip -br addr show dev enp0s2"])
    said = machine.run(f"unshare --net sh -ec {shlex.quote(script)}")
    assert said.startswith("enp0s2")
    assert " 10.0.0.1/24 " in said


def test_demo_is_set_up_once(machine: FreshMachine) -> None:
    install, demo = readme.commands("README.md", "## Try it, without VMs of your own")
    assert demo == "make demo"
    machine.run(install)
    assert "Need to get" in machine.run("tools/setup demo")
    assert machine.run("tools/setup demo") == ""
    machine.run("make --dry-run demo")


@pytest.mark.parametrize("release", [*fresh.RELEASES.values(), fresh.NEXT])
def test_machine_without_compiler_and_network_takes_the_wheels(
    release: str, tmp_path: Path
) -> None:
    for name in ("builder", "slave"):
        (tmp_path / name).mkdir()
    carried = offline.build(tmp_path / "builder")
    with fresh.machine(release, tmp_path / "slave") as slave:
        shutil.copytree(carried, slave.path(SOURCES / "offline"))
        debian, *rest = readme.commands("guest/README.md", "Install it there, as root")
        slave.run(debian)
        assert slave.attempt("command -v gcc").returncode
        for line in rest:
            slave.run(f"unshare --net bash -ec {shlex.quote(line)}")
        slave.run("/opt/vhostpci/bin/python -c 'import vhostpci_guest._ring'")
        assert "usage" in slave.run("vhostpci-guest --help")
        wanted = "--no-index --find-links offline vhostpci-host"
        slave.run(f"unshare --net /opt/vhostpci/bin/pip install {wanted}")
        slave.run("/opt/vhostpci/bin/python -c 'import vhostpci_shared._relay'")
        slave.run("/opt/vhostpci/bin/vhostpci-host --print-capabilities")
