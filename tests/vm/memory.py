# SPDX-License-Identifier: Apache-2.0
"""The memory of a master that brings its own (attach mode)."""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.vm.harness import Vm

Args = list[str]
CHUNK = 2**20


def memfd(size: str) -> Args:
    """Return what libvirt gives a VM for <source type='memfd'/>."""
    return _only(size, f"memory-backend-memfd,id=ram,size={size},share=on")


def file(size: str, path: Path) -> Args:
    """Return arguments for a file, on tmpfs or huge pages, that QEMU makes."""
    where = f"mem-path={path},share=on"
    return _only(size, f"memory-backend-file,id=ram,size={size},{where}")


def _only(size: str, backend: str) -> Args:
    return ["-m", size, "-machine", "memory-backend=ram", "-object", backend]


def two_nodes(each: str, total: str) -> Args:
    """Return arguments for two NUMA nodes, with a memfd and one of two CPUs each."""
    backends = [f"memory-backend-memfd,id=ram{n},size={each},share=on" for n in (0, 1)]
    return [
        *("-m", total),
        *(word for backend in backends for word in ("-object", backend)),
        *("-numa", "node,nodeid=0,memdev=ram0,cpus=0"),
        *("-numa", "node,nodeid=1,memdev=ram1,cpus=1"),
    ]


def half_shared(each: str, total: str) -> Args:
    """Return arguments for two NUMA nodes; that with the processors is private."""
    return [
        *("-m", total),
        *("-object", f"memory-backend-ram,id=ram0,size={each}"),
        *("-object", f"memory-backend-memfd,id=ram1,size={each},share=on"),
        *("-numa", "node,nodeid=0,memdev=ram0,cpus=0"),
        *("-numa", "node,nodeid=1,memdev=ram1"),
    ]


def with_slots(args: Args) -> Args:
    """Return arguments for this memory and room for DIMMs that come later."""
    flag, size, *backend = args
    return [flag, f"{size},slots=2,maxmem=4G", *backend]


def plug_dimm(vm: Vm, size: int, *, share: bool = True) -> None:
    """Plug a DIMM in, and have the guest's kernel use it.

    Without ``share`` its memory is QEMU's own, and no back-end is told of it.
    """
    # Debian 13's kernel has the memory online at once, and chooses for what.
    vm.run("echo offline > /sys/devices/system/memory/auto_online_blocks")
    kind = "memory-backend-memfd" if share else "memory-backend-ram"
    vm.qmp(
        "object-add",
        **{"qom-type": kind, "id": "dimm0", "size": size},
        share=share,
    )
    vm.qmp("device_add", driver="pc-dimm", id="slot0", memdev="dimm0")
    blocks = size >> 27
    vm.wait_for(f"test $(grep -l offline {BLOCKS} | wc -l) = {blocks}")
    vm.run(
        f"for state in $(grep -l offline {BLOCKS}); do "
        "echo online_kernel > $state; done"
    )


BLOCKS = "/sys/devices/system/memory/memory*/state"


def files(vm: Vm, size: int) -> list[Path]:
    """Return those of QEMU's memory files that have this size, by paths to open."""
    descriptors = Path(f"/proc/{vm.pid}/fd")
    return [
        path
        for path in sorted(descriptors.iterdir(), key=lambda path: int(path.name))
        if os.readlink(path).startswith("/memfd:memory-backend")
        and path.stat().st_size == size
    ]


def holds(path: Path, pattern: bytes) -> bool:
    """Return whether a sparse file has a pattern, unless it lies across two chunks."""
    with path.open("rb") as file:
        return any(pattern in chunk for chunk in _chunks(file.fileno()))


def _chunks(fd: int) -> Iterator[bytes]:
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: no data past that
        end = os.lseek(fd, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(fd, min(CHUNK, end - at), at)
            if not data:
                return
            yield data
            at += len(data)
