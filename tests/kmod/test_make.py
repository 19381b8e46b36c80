# SPDX-License-Identifier: Apache-2.0
"""kmod/ built and installed by make, with the headers of Debian's kernels."""

import subprocess
from pathlib import Path

import pytest

from tests.vm import headers, kmod
from tests.vm.kernels import BACKPORTS, THIS_DEBIAN, Kernel

pytestmark = [pytest.mark.kmod, pytest.mark.timeout(300)]

each_kernel = pytest.mark.parametrize(
    "kernel", [THIS_DEBIAN, BACKPORTS], ids=lambda kernel: kernel.name
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of kmod/ to build in."""
    kmod.copy_sources(tmp_path / "kmod")
    return tmp_path / "kmod"


def modinfo(*argv: str) -> str:
    """Return what modinfo prints of our module."""
    return subprocess.run(
        ["modinfo", *argv], capture_output=True, text=True, check=True
    ).stdout.strip()


@each_kernel
def test_it_is_built_for_the_kernel_whose_headers_it_was_given(kernel: Kernel) -> None:
    vermagic = modinfo("-F", "vermagic", str(kmod.build(kernel)))
    assert vermagic.startswith(f"{kernel.release()} ")


@each_kernel
def test_neither_compiler_nor_sparse_object_to_anything(kernel: Kernel) -> None:
    kmod.check(kernel)


@pytest.mark.parametrize(
    ("good", "bad"),
    [("return 0;", "int unused; return 0;"), ("= NULL;", "= 0;")],
    ids=["compiler", "sparse"],
)
def test_what_either_objects_to_is_an_error(sources: Path, good: str, bad: str) -> None:
    file = sources / "driver.c"
    file.write_text(file.read_text().replace(good, bad))
    with pytest.raises(kmod.BuildError, match=r"driver\.c:\d+"):
        kmod.make(sources, headers.build_directory(), *kmod.STRICT, *kmod.SPARSE)


@each_kernel
def test_it_installs_below_another_root_for_modprobe_to_find(
    kernel: Kernel, sources: Path, tmp_path: Path
) -> None:
    root, release = tmp_path / "root", kernel.release()
    options = ("install", f"INSTALL_MOD_PATH={root}")
    kmod.make(sources, headers.build_directory(kernel), *options)
    found = modinfo("-b", str(root), "-k", release, "-F", "filename", kmod.NAME)
    assert Path(found).parent == root / "lib/modules" / release / "updates"


@pytest.mark.parametrize("target", ["modules", "install", "clean"])
def test_a_kernel_without_headers_is_told_their_package(
    sources: Path, target: str
) -> None:
    done = subprocess.run(
        ["make", "-s", "--no-print-directory", "-C", sources, "KERNEL=9.9.9", target],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "apt install linux-headers-9.9.9" in done.stderr
