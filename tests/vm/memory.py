# SPDX-License-Identifier: Apache-2.0
"""Memory that a master may have when nobody tells it which (attach mode)."""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.vm.harness import Vm

Args = list[str]
CHUNK = 2**20


def memfd(size: str) -> Args:
    """As libvirt gives it: <source type='memfd'/>."""
    return _only(size, f"memory-backend-memfd,id=ram,size={size},share=on")


def file(size: str, path: Path) -> Args:
    """A file, on tmpfs or huge pages; QEMU makes it."""
    where = f"mem-path={path},share=on"
    return _only(size, f"memory-backend-file,id=ram,size={size},{where}")


def _only(size: str, backend: str) -> Args:
    return ["-m", size, "-machine", "memory-backend=ram", "-object", backend]


def two_nodes(each: str, total: str) -> Args:
    """Two NUMA nodes with a processor and a memfd each; two processors, then."""
    backends = [f"memory-backend-memfd,id=ram{n},size={each},share=on" for n in (0, 1)]
    return [
        *("-m", total),
        *(word for backend in backends for word in ("-object", backend)),
        *("-numa", "node,nodeid=0,memdev=ram0,cpus=0"),
        *("-numa", "node,nodeid=1,memdev=ram1,cpus=1"),
    ]


def with_slots(size: str) -> Args:
    """A memfd, and room for DIMMs that come later."""
    args = memfd(size)
    args[1] += ",slots=2,maxmem=4G"
    return args


def plug_dimm(vm: Vm, size: int) -> None:
    """Plug a DIMM in, and have the guest use it for whatever it likes."""
    vm.qmp(
        "object-add",
        **{"qom-type": "memory-backend-memfd", "id": "dimm0", "size": size},
        share=True,
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
    """QEMU's memory files of a size, as we can open them."""
    descriptors = Path(f"/proc/{vm.pid}/fd")
    return [
        path
        for path in sorted(descriptors.iterdir(), key=lambda path: int(path.name))
        if os.readlink(path).startswith("/memfd:memory-backend")
        and path.stat().st_size == size
    ]


def holds(path: Path, pattern: bytes) -> bool:
    """Whether a sparse file has a pattern anywhere, but for borders of a chunk."""
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
