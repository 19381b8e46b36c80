# SPDX-License-Identifier: Apache-2.0
"""Modules of a guest's kernel that no image has, from Debian's packages."""

import lzma
import subprocess
from functools import cache

from tests.vm import debs
from tests.vm.cache import cache_dir, one_at_a_time
from tests.vm.harness import Vm
from tests.vm.kernels import Kernel


def load(vm: Vm, kernel: Kernel, name: str) -> None:
    """Load a module, which needs no other one, into the kernel of a VM."""
    path = f"/tmp/{name}.ko"
    vm.put(path, module(kernel, name))
    vm.run(["insmod", path])


@cache
@one_at_a_time()
def module(kernel: Kernel, name: str) -> bytes:
    """Return a module of a kernel whose modules are a package for themselves (7.x)."""
    (package,) = (one for one in kernel.image_packages() if "-modules-" in one)
    (found,) = debs.locate([package], kernel.archive())
    directory = cache_dir() / "debs"
    debs.download([package], [found], directory, kernel.archive())
    argv = ["dpkg-deb", "--fsys-tarfile", str(directory / found.filename)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as reader:
        packed = subprocess.check_output(
            ["tar", "-x", "--to-stdout", "--wildcards", f"*/{name}.ko.xz"],
            stdin=reader.stdout,
            timeout=600,
        )
    return lzma.decompress(packed)
