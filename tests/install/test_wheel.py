# SPDX-License-Identifier: Apache-2.0
"""The wheel of the guest part, which a slave without a compiler takes."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.vm import wheels
from tests.vm.image import CHECKOUT


@pytest.mark.timeout(300)
def test_wheel_is_for_each_python_that_its_ring_is_for(tmp_path: Path) -> None:
    """Left in the sources is what another version of Python was built for."""
    copy = tmp_path / "guest"
    shutil.copytree(CHECKOUT / "guest", copy, ignore=wheels.NOT_SOURCE)
    left = "_ring.cpython-310-x86_64-linux-gnu.so"
    (copy / "src/vhostpci_guest" / left).touch()
    wheels.pip_wheel(copy, tmp_path / "wheels")
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.endswith("-cp311-abi3-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
    assert modules == ["vhostpci_guest/_ring.abi3.so"]
