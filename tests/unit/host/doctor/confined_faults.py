# SPDX-License-Identifier: Apache-2.0
"""Faults of confined masters that `vhostpci-host doctor` must find."""

from collections.abc import Callable
from dataclasses import replace

from tests.unit.host.doctor.healthy import (
    CARD,
    SAFE_MASTER,
)
from tests.unit.host.doctor.seeded import Fault, Seeded
from vhostpci_host.doctor.hypervisor import Hypervisor


def _shared_node(on: Seeded) -> None:
    on.line(SAFE_MASTER, "size=80M", "size=256M")


def _second_shared(on: Seeded) -> None:
    old = "memory-backend-ram,id=m2"
    on.line(SAFE_MASTER, old, "memory-backend-memfd,share=off,id=m2")


def _shared_ram(on: Seeded) -> None:
    on.line(SAFE_MASTER, "id=m3,", "id=m3,share=on,")


def _none_shared(on: Seeded) -> None:
    on.line(SAFE_MASTER, "memory-backend-file", "memory-backend-ram")
    on.line(SAFE_MASTER, "safe,share=on", "safe,share=off")


def _other_file(on: Seeded) -> None:
    on.line(SAFE_MASTER, "mem-path=", "mem-path=/elsewhere")


def _mem_path(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-mem-path", "/dev/hugepages")


def _no_platform(on: Seeded) -> None:
    on.line(SAFE_MASTER, "iommu_platform=on,", "")


def _transitional(on: Seeded) -> None:
    on.line(SAFE_MASTER, "disable-legacy=on,", "")


def _control_queue(on: Seeded) -> None:
    on.line(SAFE_MASTER, "ctrl_vq=off,", "")


def _companion(on: Seeded) -> None:
    on.line(SAFE_MASTER, ",guest_announce=off", "")


def _more_queues(on: Seeded) -> None:
    on.line(SAFE_MASTER, "ctrl_vq=off", "ctrl_vq=off,mq=on")


def _ahci(on: Seeded) -> None:
    on.line(SAFE_MASTER, ",sata=off", "")


def _nvme(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-device", "nvme,drive=d")


def _second_platform(on: Seeded) -> None:
    on.line(SAFE_MASTER, "drive=d", "drive=d,iommu_platform=on")


def _all_platform(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-global", "virtio-pci.iommu_platform=on")


def _master_viommu(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-device", "intel-iommu")


def _usb(on: Seeded) -> None:
    on.line(SAFE_MASTER, "sata=off", "sata=off,usb=on")


def _second_nic(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-nic", "user,model=e1000")


def _second_confined(on: Seeded) -> None:
    _vhost_user_card(on, ",iommu_platform=on,disable-legacy=on")


def _vhost_user_card(on: Seeded, properties: str = "") -> None:
    on.append(SAFE_MASTER, "-netdev", "vhost-user,id=more,chardev=more")
    on.append(SAFE_MASTER, "-device", f"virtio-net-pci,netdev=more{properties}")


def _vhost_user_device(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-device", "vhost-user-fs-pci,chardev=more,tag=data")


def _screen(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-vga", "vmware")


def _crypto(on: Seeded) -> None:
    on.append(SAFE_MASTER, "-device", "virtio-crypto-pci,cryptodev=c")


def _monitor_says(**device: str) -> Callable[[Seeded], Hypervisor]:
    return lambda on: replace(on.host, plugged=lambda: [CARD, device])


def _no_numa_off(on: Seeded) -> None:
    on.kernel_word("numa=off", "")


def _small_pool(on: Seeded) -> None:
    on.kernel_word("swiotlb=32768,force", "swiotlb=16384,force")


def _no_cma(on: Seeded) -> None:
    on.kernel_word("cma=16M@0x24000000-0x25000000", "cma=16M")


def _other_place(on: Seeded) -> None:
    on.kernel_word("cma=16M@0x24000000-0x25000000", "cma=16M@0x23000000-0x24000000")


def _later_word(on: Seeded) -> None:
    on.kernel_word("init_on_alloc=1", "init_on_alloc=1 swiotlb=1024")


def _kaslr(on: Seeded) -> None:
    on.kernel_word("nokaslr", "")


def _no_memmap(on: Seeded) -> None:
    on.kernel_word("memmap=60M%0x25000000-1+2", "memmap=128M%0x25000000-1+2")


def _lends(on: Seeded) -> None:
    on.kernel_word("init_on_alloc=1", "init_on_alloc=1 --")


def _crash_kernel(on: Seeded) -> None:
    on.kernel_word("init_on_alloc=1", "init_on_alloc=1 crashkernel=256M")


def _no_huge_pages(on: Seeded) -> None:
    on.db["memory"]["filesystem"] = "hugetlbfs"
    on.db["slave"] = None


CONFINED_FAULTS = (
    Fault("a shared node of ordinary memory", "confined-memory", _shared_node),
    Fault("a second memory with a file", "confined-memory", _second_shared),
    Fault("private memory with share=on", "confined-memory", _shared_ram),
    Fault("no memory shared", "confined-memory", _none_shared),
    Fault("another file shared", "confined-memory", _other_file),
    Fault("-mem-path", "confined-memory", _mem_path),
    Fault("no iommu_platform", "confined-card", _no_platform),
    Fault("no disable-legacy", "confined-card", _transitional),
    Fault("a control queue", "confined-card", _control_queue),
    Fault("a companion is on", "confined-card", _companion),
    Fault("several queue pairs", "confined-card", _more_queues),
    Fault("AHCI beside a confined card", "confined-devices", _ahci),
    Fault("NVMe beside a confined card", "confined-devices", _nvme),
    Fault("another iommu_platform", "confined-devices", _second_platform),
    Fault("iommu_platform of all", "confined-devices", _all_platform),
    Fault("vIOMMU of a confined master", "confined-devices", _master_viommu),
    Fault("USB beside a confined card", "confined-devices", _usb),
    Fault("-nic beside a confined card", "confined-devices", _second_nic),
    Fault("another vhost-user card", "confined-devices", _vhost_user_card),
    Fault("a second confined card", "confined-devices", _second_confined),
    Fault("vhost-user that is no card", "confined-devices", _vhost_user_device),
    Fault("a screen that uses DMA", "confined-devices", _screen),
    Fault("virtio-crypto", "confined-devices", _crypto),
    Fault("e1000, plugged", "confined-plugged", _monitor_says(driver="e1000")),
    Fault(
        "vhost-user, plugged",
        "confined-plugged",
        _monitor_says(driver="vhost-user-fs-pci"),
    ),
    Fault(
        "a second iommu_platform, plugged",
        "confined-plugged",
        _monitor_says(**CARD | {"backend": ""}),
    ),
    Fault(
        "a second confined card, plugged",
        "confined-plugged",
        _monitor_says(**CARD),
    ),
    Fault(
        "another vhost-user card, plugged",
        "confined-plugged",
        _monitor_says(**CARD | {"iommu_platform": "off"}),
    ),
    Fault("no numa=off", "confined-words", _no_numa_off),
    Fault("another pool", "confined-words", _small_pool),
    Fault("no cma=", "confined-words", _no_cma),
    Fault("cma= of another layout", "confined-words", _other_place),
    Fault("another pool later", "confined-words", _later_word),
    Fault("no nokaslr", "confined-words", _kaslr),
    Fault("memmap= of another layout", "confined-words", _no_memmap),
    Fault("a ring area that is lent", "confined-words", _lends),
    Fault("crashkernel=", "confined-words", _crash_kernel),
    Fault("too few huge pages", "huge-pages", _no_huge_pages, also="slave"),
)
