# SPDX-License-Identifier: Apache-2.0
"""host/selinux in all of a distribution's policy, which no kernel has loaded.

A fresh Debian with its policy, where semodule links our module into that.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import fresh
from tests.install.fresh import FreshMachine

pytestmark = [pytest.mark.debs, pytest.mark.install]

PACKAGES = "selinux-policy-default selinux-policy-dev setools"
POLICY = "/etc/selinux/default/policy/policy.*"
CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"

TYPES = {
    "/run/vhostpci": "runtime",
    "/run/vhostpci/net0.vhost-user": "runtime",
    "/dev/shm/vhostpci": "tmpfs",
    "/dev/shm/vhostpci/net0": "tmpfs",
    "/etc/vhostpci.toml": "conf",
    "/etc/vhostpci/net0.toml": "conf",
    "/usr/bin/vhostpci-host": "exec",
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshMachine]:
    """A Debian 12 whose policy has our module."""
    place = tmp_path_factory.mktemp("selinux")
    with fresh.machine(fresh.RELEASES[12], Path(place)) as new:
        new.run(f"apt-get install --no-install-recommends {PACKAGES}")
        new.run("make -C host/selinux -f /usr/share/selinux/devel/Makefile vhostpci.pp")
        new.run("semodule -s default -n -i host/selinux/vhostpci.pp")
        yield new


def allowed(machine: FreshMachine, source: str, target: str, kind: str) -> set[str]:
    """Return what the policy allows a type to do with another one."""
    said = machine.run(f"sesearch -A -s {source} -t {target} -c {kind} {POLICY}")
    rules = [line.partition("{")[2] or line for line in said.splitlines()]
    return {word.strip(";") for rule in rules for word in rule.split()}


@pytest.mark.parametrize("path", TYPES)
def test_file_has_its_type(machine: FreshMachine, path: str) -> None:
    said = machine.run(f"matchpathcon -n -f {CONTEXTS} {path}").strip()
    assert said == f"system_u:object_r:vhostpci_{TYPES[path]}_t:s0"


def test_systemd_starts_the_daemon_in_its_domain(machine: FreshMachine) -> None:
    said = machine.run(f"sesearch -T -s init_t -t vhostpci_exec_t -c process {POLICY}")
    assert said.strip() == "type_transition init_t vhostpci_exec_t:process vhostpci_t;"


def test_qemu_of_libvirt_may_connect_and_map(machine: FreshMachine) -> None:
    assert {"map", "open", "read", "write"} <= allowed(
        machine, "svirt_t", "vhostpci_tmpfs_t", "file"
    )
    assert "write" in allowed(machine, "svirt_t", "vhostpci_runtime_t", "sock_file")
    assert "connectto" in allowed(
        machine, "svirt_t", "vhostpci_t", "unix_stream_socket"
    )
