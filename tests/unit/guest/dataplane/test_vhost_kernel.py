# SPDX-License-Identifier: Apache-2.0
"""The ioctls of vhost-net have the numbers and the structs of linux/vhost.h."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from struct import Struct, unpack_from

import pytest

from vhostpci_guest.dataplane import vhost_kernel
from vhostpci_guest.dataplane.interface import MemRegion, RingConf
from vhostpci_guest.dataplane.vhost_kernel import VhostNet
from vhostpci_shared.virtio import Feature

HEADER = Path("/usr/include/linux/vhost.h")
REQUESTS = {
    name.removeprefix("_"): value
    for name, value in vars(vhost_kernel).items()
    if isinstance(value, int) and name.startswith(("_SET_", "_GET_", "_NET_"))
}
STRUCTS = {
    "struct vhost_vring_state": vhost_kernel._state,
    "struct vhost_vring_file": vhost_kernel._file,
    "struct vhost_vring_addr": vhost_kernel._addr,
    "struct vhost_memory": vhost_kernel._memory,
    "struct vhost_memory_region": vhost_kernel._region,
}
ADDRESSES = ("index", "flags", "desc_user_addr", "used_user_addr", "avail_user_addr")


def printed(tmp_path: Path, expressions: list[str]) -> list[int]:
    """Return what a C compiler makes of constant expressions."""
    compiler = shutil.which("gcc")
    if compiler is None or not HEADER.exists():
        pytest.skip("gcc or linux/vhost.h: not installed")
    lines = "".join(f'printf("%zu\\n", (size_t)({one}));\n' for one in expressions)
    source = tmp_path / "vhost.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vhost.h>\n"
        f"int main(void)\n{{\n{lines}}}\n"
    )
    program = tmp_path / "vhost"
    subprocess.run([compiler, source, "-o", program], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True)
    return [int(line) for line in output.stdout.split()]


def test_requests_have_the_kernels_numbers(tmp_path: Path) -> None:
    assert len(REQUESTS) == 12
    wanted = printed(tmp_path, [f"VHOST_{name}" for name in REQUESTS])
    assert dict(zip(REQUESTS, wanted, strict=True)) == REQUESTS


def test_structs_have_the_kernels_sizes_and_order(tmp_path: Path) -> None:
    sizes = printed(tmp_path, [f"sizeof({name})" for name in STRUCTS])
    assert sizes == [layout.size for layout in STRUCTS.values()]
    offsets = printed(
        tmp_path, [f"offsetof(struct vhost_vring_addr, {one})" for one in ADDRESSES]
    )
    ours = [Struct(f"={'IIQQQQ'[:count]}").size for count in range(len(ADDRESSES))]
    assert offsets == ours


class Ioctls:
    """A kernel that notes what it is asked, in place of /dev/vhost-net."""

    def __init__(self) -> None:
        self.asked: dict[int, bytes] = {}
        self.features = 2**64 - 1

    def __call__(self, fd: int, request: int, argument: bytes | bytearray = b"") -> int:
        self.asked[request] = bytes(argument)
        if request == vhost_kernel._GET_FEATURES:
            assert isinstance(argument, bytearray)
            argument[:] = vhost_kernel._u64.pack(self.features)
        return 0


@pytest.fixture
def ioctls(monkeypatch: pytest.MonkeyPatch) -> Ioctls:
    ioctls = Ioctls()
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    return ioctls


@pytest.fixture
def vhost(ioctls: Ioctls) -> Iterator[VhostNet]:
    vhost = VhostNet(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    yield vhost
    vhost.close()


def conf(features: int) -> RingConf:
    return RingConf(
        desc=0,
        driver=0,
        device=0,
        size=256,
        base=5,
        hdr_len=12,
        max_packet=1500,
        features=features,
    )


def test_kernel_makes_no_header_because_the_driver_takes_any_layout(
    vhost: VhostNet, ioctls: Ioctls
) -> None:
    """The two are one bit, and here the TAP has the header."""
    acknowledged = Feature.F_ANY_LAYOUT | Feature.F_VERSION_1 | Feature.NET_F_CSUM
    vhost.set_up(0, conf(acknowledged), (1, 2, 3))
    (said,) = unpack_from("=Q", ioctls.asked[vhost_kernel._SET_FEATURES])
    assert said == Feature.F_VERSION_1


def test_feature_that_the_kernel_does_not_know_is_not_asked_of_it(
    ioctls: Ioctls,
) -> None:
    ioctls.features = int(Feature.F_VERSION_1)
    vhost = VhostNet(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    vhost.set_up(0, conf(Feature.F_VERSION_1 | Feature.F_IN_ORDER), (1, 2, 3))
    vhost.close()
    (said,) = unpack_from("=Q", ioctls.asked[vhost_kernel._SET_FEATURES])
    assert said == Feature.F_VERSION_1


def test_kernel_is_told_the_ring_and_the_memory(
    vhost: VhostNet, ioctls: Ioctls
) -> None:
    vhost.set_memory([MemRegion(0x1000, 0x2000, 0x3000)])
    vhost.set_up(1, conf(0), (0xD, 0xA, 0xB))
    asked = ioctls.asked
    assert unpack_from("=IIQQQQ", asked[vhost_kernel._SET_MEM_TABLE]) == (
        *(1, 0),
        *(0x1000, 0x2000, 0x3000, 0),
    )
    assert unpack_from("=II", asked[vhost_kernel._SET_VRING_NUM]) == (1, 256)
    assert unpack_from("=II", asked[vhost_kernel._SET_VRING_BASE]) == (1, 5)
    # In the kernel's order: descriptors, used ring, avail ring, log.
    assert unpack_from("=IIQQQQ", asked[vhost_kernel._SET_VRING_ADDR]) == (
        *(1, 0),
        *(0xD, 0xB, 0xA, 0),
    )


def test_ring_without_an_eventfd_says_so(vhost: VhostNet, ioctls: Ioctls) -> None:
    vhost.set_signals(1, kick=7, call=None, error=9)
    told = {
        request: unpack_from("=Ii", ioctls.asked[request])
        for request in (
            vhost_kernel._SET_VRING_KICK,
            vhost_kernel._SET_VRING_CALL,
            vhost_kernel._SET_VRING_ERR,
        )
    }
    assert list(told.values()) == [(1, 7), (1, -1), (1, 9)]
