# SPDX-License-Identifier: Apache-2.0
"""Tests that download a hundred megabytes: the newest kernel, and checkpatch.

By name, ``tox -e kmod``: Debian's newest kernel changes by the week, and may break what
builds today without any change of ours.
"""

from pathlib import Path

import pytest

from tests.kmod import checkpatch
from tests.vm import chroot, kmod
from tests.vm.kernels import NEWEST

pytestmark = [pytest.mark.kmod, pytest.mark.downloads, pytest.mark.timeout(900)]


def test_it_builds_without_a_warning_for_debians_newest_kernel(tmp_path: Path) -> None:
    root = chroot.make(kmod.TOOLS, NEWEST.archive())
    kmod.copy_sources(tmp_path / "kmod")
    kmod.make_in(root, tmp_path / "kmod", NEWEST, *kmod.STRICT)
    assert (tmp_path / "kmod/uio_vhostpci.ko").exists()


def test_checkpatch_objects_to_nothing() -> None:
    assert checkpatch.report(*sorted(kmod.SOURCE.glob("*.[ch]"))) == ""


def test_what_checkpatch_objects_to_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "bad.c"
    file.write_text("int  x ;\n")
    assert "bad.c:1: WARNING" in checkpatch.report(file)
