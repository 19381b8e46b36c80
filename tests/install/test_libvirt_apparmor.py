# SPDX-License-Identifier: Apache-2.0
"""libvirt confines its QEMUs by AppArmor, on a hypervisor with our package.

  a VM: Debian with libvirt, whose kernel has AppArmor
    net0-master ---- vhostpci-host.service ---- net0-slave
  profile libvirt-UUID    profile vhostpci-host    profile libvirt-UUID

The domains need no guest: QEMU opens the memory and the sockets before it runs one.
"""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.install import systemd_image
from tests.install.systemd_slave import BOOT
from tests.vm.harness import Result, Vm
from tests.vm.image import CHECKOUT

pytestmark = [pytest.mark.debs, pytest.mark.install]

ABSTRACTION = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
LOG = "journalctl -u vhostpci-host --no-pager -o cat"
START = 300.0
"""Seconds of the VM's, whose processor is emulated, for a command of virsh."""


def documented() -> str:
    """Return the lines that docs/plugging.md has for that file."""
    text = (CHECKOUT / "docs/plugging.md").read_text()
    found = re.search(rf"`{ABSTRACTION}`.*?```\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    kind = systemd_image.HYPERVISOR
    guest = systemd_image.build("bookworm", tmp_path_factory.mktemp("image"), kind)
    logs = CHECKOUT / "logs/libvirt-apparmor"
    with Vm("hypervisor", guest, logs=logs, memory="2G", cpus=2) as vm:
        vm.wait_ready(BOOT)
        for unit in ("vhostpci-host", "libvirtd.socket"):
            vm.wait_for(f"systemctl is-active {unit}", BOOT)
        yield vm


def define(vm: Vm, role: str, name: str = "net0", options: str = "") -> None:
    """Define the domain that `vhostpci-host xml` prints, with less memory."""
    options += " --type qemu --qemu /usr/bin/qemu-system-x86_64"
    vm.run(
        f"vhostpci-host xml {name} --role {role} {options} >/root/{role}.xml && "
        f"sed -i 's|>1024</memory>|>64</memory>|' /root/{role}.xml && "
        f"virsh define /root/{role}.xml",
        timeout=START,
    )


def start(vm: Vm, role: str, name: str = "net0") -> Result:
    """Start a domain, which may fail."""
    return vm.run(f"virsh start {name}-{role}", timeout=START, check=False)


def denials(vm: Vm) -> list[str]:
    """Return what the kernel says that AppArmor has refused."""
    return [line for line in vm.run("dmesg").stdout.splitlines() if "DENIED" in line]


def test_lines_of_the_documents_are_correct() -> None:
    subprocess.run(
        ["apparmor_parser", "--skip-kernel-load", "--skip-cache"],
        input=f"profile libvirt-test {{\n{documented()}}}\n",
        check=True,
        text=True,
        timeout=60,
    )


def test_confined_domains_start_with_the_lines_of_the_documents(hypervisor: Vm) -> None:
    for role in ("master", "slave"):
        define(hypervisor, role)
    refused = start(hypervisor, "master")
    assert "/dev/shm/vhostpci/net0 for guest RAM: Permission denied" in refused.stderr
    (denied,) = denials(hypervisor)
    assert 'profile="libvirt-' in denied
    assert 'name="/dev/shm/vhostpci/net0"' in denied

    hypervisor.put(ABSTRACTION, documented().encode())
    for role in ("master", "slave"):
        done = start(hypervisor, role)
        assert done.rc == 0, done.stderr
    shown = hypervisor.run(
        "cd /proc && for pid in $(pidof qemu-system-x86_64); do "
        "cat $pid/attr/current; done"
    ).stdout.splitlines()
    assert len(shown) == 2
    assert all(re.fullmatch(r"libvirt-[-0-9a-f]{36} \(enforce\)", it) for it in shown)
    for said in ("front-end connected", "slave connected"):
        hypervisor.wait_for(f"{LOG} | grep -q '^net0: {said}'", START)
    assert denials(hypervisor) == [denied]


def test_master_of_a_confined_device_starts_with_them(hypervisor: Vm) -> None:
    """Its shared memory is a file of libvirt's, and its card plain arguments."""
    hypervisor.put(ABSTRACTION, documented().encode())
    hypervisor.run(
        "echo 'memory_backing_dir = \"/dev/shm/libvirt\"' >>/etc/libvirt/qemu.conf && "
        "systemctl restart libvirtd",
        timeout=START,
    )
    define(hypervisor, "master", "net1", "--mode attach --memory 400M")
    before = denials(hypervisor)
    done = start(hypervisor, "master", "net1")
    assert done.rc == 0, done.stderr
    hypervisor.wait_for(f"{LOG} | grep -q '^net1: front-end connected'", START)
    profile = hypervisor.run("cat /etc/apparmor.d/libvirt/*.files").stdout
    assert re.search(r'"/dev/shm/libvirt/libvirt/qemu/\d+-net1-master/', profile)
    assert denials(hypervisor) == before
