# SPDX-License-Identifier: Apache-2.0
"""The data plane vhost-net is there, or its absence is explained before all else."""

import os
from pathlib import Path

import pytest

from vhostpci_guest.cli import vhost_net_planes
from vhostpci_guest.cli.run import check_tun
from vhostpci_guest.cli.separation import Helpers
from vhostpci_guest.config.data_plane import parse_data_plane
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci.kernel import System
from vhostpci_guest.tap.requests import LocalRequests


class ModuleSystem(System):
    """A machine on which modprobe makes the node, or fails."""

    def __init__(self, node: Path, error: str | None) -> None:
        super().__init__()
        self._node = node
        self._error = error
        self.asked: list[str] = []

    def modprobe(self, module: str, *, dry: bool = False) -> str | None:
        self.asked.append(module)
        if self._error is None:
            self._node.touch()
        return self._error


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return tmp_path / "vhost-net"


def make(node: Path, system: System | None) -> None:
    before = len(os.listdir("/proc/self/fd"))
    vhost_net_planes.make_planes(LocalRequests(vhost=node), system, confine=False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_module_that_is_there_is_not_loaded(node: Path) -> None:
    node.touch()
    system = ModuleSystem(node, None)
    make(node, system)
    assert system.asked == []


def test_module_is_loaded_if_need_be(node: Path) -> None:
    system = ModuleSystem(node, None)
    make(node, system)
    assert system.asked == ["vhost_net"]


def test_kernel_without_the_module_is_explained(node: Path) -> None:
    system = ModuleSystem(node, "FATAL: Module vhost_net not found.")
    with pytest.raises(Unusable, match=r"vhost_net .*not found.*--data-plane ring"):
        make(node, system)


def test_slave_process_is_told_to_load_the_module(node: Path) -> None:
    with pytest.raises(Unusable, match=r"modprobe vhost_net.*--device"):
        make(node, None)


@pytest.mark.parametrize("error", [None, "FATAL: Module tun not found."])
def test_module_for_taps_is_loaded_if_need_be(node: Path, error: str | None) -> None:
    system = ModuleSystem(node, error)
    helpers = Helpers(LocalRequests(node=node), system)
    if error is None:
        check_tun(helpers)
    else:
        with pytest.raises(Unusable, match=r"modprobe tun.*Module tun not found"):
            check_tun(helpers)
    assert system.asked == ["tun"]


@pytest.mark.parametrize("option", ["cpus", "poll-us"])
def test_option_for_our_threads_does_not_fit(option: str) -> None:
    choice = parse_data_plane("vhost-net")
    assert list(choice.misfits({"tap"})) == []
    ((name, why, _),) = choice.misfits({"tap", option})
    assert name == option
    assert "has no threads of ours" in why
