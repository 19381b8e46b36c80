# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: nothing that it opened stays open."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.descriptors import open_descriptors

# Machines under emulation are slow now and then; pytest-timeout bounds a test.
settings.register_profile(
    "vhostpci",
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # ours opens nothing
        HealthCheck.too_slow,
    ],
)
settings.load_profile("vhostpci")


NEEDS = {
    "kmod": (
        *("apt-get", "chroot", "depmod", "dkms", "dpkg-deb", "gcc-12", "make"),
        *("modinfo", "nsenter", "openssl", "pahole", "perl", "sparse", "tar"),
        "unshare",
    ),
    "libvirt": ("libvirtd", "qemu-system-x86_64", "unshare", "virsh", "xmllint"),
    "process": (
        "/dev/net/tun",
        "ip",
        "iperf3",
        "nsenter",
        "ping",
        "setpriv",
        "unshare",
    ),
    "frontends": (
        *("/dev/net/tun", "dpdk-testpmd", "insmod", "ip", "iperf3", "linux.uml"),
        *("nsenter", "ping", "setpriv", "stdbuf", "stty", "unshare"),
    ),
    "vm": (
        *("/dev/net/tun", "/usr/bin/python3.11", "apt-get", "depmod", "dpkg-deb"),
        *("ip", "ldconfig", "modprobe", "nsenter", "ping", "qemu-system-x86_64"),
        *("readelf", "setpriv", "tar", "unshare"),
        *("gcc-12", "make", "pahole"),  # the slave has our module
    ),
}
"""What the tests with these markers need of the machine, beside root."""


LAST_RESORT = {"vm": 1800, "libvirt": 1800, "process": 300, "frontends": 300}
"""After so many seconds pytest ends a test with this marker and without a limit.

What such a test waits for has a limit that fails with a reason.  This one is for what
those do not see: it must not end a test that a loaded machine makes slow.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that start VMs and processes more time than others."""
    for item in items:
        limits = [LAST_RESORT[one] for one in LAST_RESORT if _marked(item, one)]
        if limits and not _marked(item, "timeout"):
            item.add_marker(pytest.mark.timeout(max(limits)))


def _marked(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is not None


def lacking(marker: str) -> list[str]:
    """Return what this machine has not."""
    lacks = [
        need
        for need in NEEDS[marker]
        if not (shutil.which(need) or (need.startswith("/dev") and Path(need).exists()))
    ]
    return [*lacks, "root"] if os.geteuid() else lacks


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip where something is missing, and name it; in CI that is a failure."""
    for marker in NEEDS:
        if item.get_closest_marker(marker) and (lacks := lacking(marker)):
            stop = pytest.fail if os.environ.get("CI") else pytest.skip
            stop(f"missing: {', '.join(lacks)} (tools/setup installs what it can)")


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor open, and say which."""
    before = open_descriptors()
    yield
    after = open_descriptors()
    if after != before:
        gc.collect()  # what is in a cycle warns of itself now, and closes
        after = open_descriptors()
    # The number of a descriptor is used again: compare what it is, too.
    leaked = {fd: what for fd, what in after.items() if before.get(fd) != what}
    assert not leaked, f"left open: {leaked}"
