# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests, and a check that each closes what it opened."""

import gc
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler.protocol import Scheduling

from tests.descriptors import open_descriptors
from tests.longest_first import LongestFirst

# No deadline for one example: an emulated machine pauses at times, and
# pytest-timeout limits the test as a whole.
settings.register_profile(
    "vhostpci",
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # our autouse fixture opens nothing
        HealthCheck.too_slow,
    ],
)
settings.load_profile("vhostpci")


NEEDS = {
    "kmod": (
        *("apt-get", "chroot", "depmod", "dkms", "dpkg-deb", "gcc", "make"),
        *("modinfo", "nsenter", "openssl", "pahole", "perl", "sparse", "tar"),
        "unshare",
    ),
    "libfuzzer": ("clang", "nice"),
    "atheris": ("atheris", "nice"),
    "install": (
        *("chroot", "debootstrap", "git", "mke2fs", "nsenter", "setpriv", "unshare"),
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
    "backends": (
        *("/dev/net/tun", "apt-get", "dpkg-deb", "dpdk-testpmd", "ip", "iperf3"),
        *("linux.uml", "nsenter", "ping", "setpriv", "stdbuf", "tar", "unshare"),
    ),
    "vm": (
        *("/dev/net/tun", "/usr/bin/python3", "apt-get", "depmod", "dpkg-deb"),
        *("ip", "ldconfig", "modprobe", "nsenter", "ping", "qemu-system-x86_64"),
        *("readelf", "setpriv", "tar", "unshare"),
        *("gcc", "make", "pahole"),  # the slave has our module
    ),
    "arm64": ("busybox", "qemu-system-aarch64"),
    "debs": (
        *("/dev/net/tun", "apt-get", "checkmodule", "debootstrap", "dh", "dh_apparmor"),
        *("dh_dkms", "dpkg-buildpackage", "git", "lintian", "qemu-system-x86_64"),
        *("setpriv", "unshare"),
    ),
}
"""The programs and devices that tests with a marker need, and one of MODULES."""

MODULES = {"atheris"}
ROOTLESS = {"libfuzzer", "atheris"}
"""The markers whose tests do not need root too."""


LAST_RESORT = {
    "vm": 1800,
    "libvirt": 1800,
    "process": 900,
    "frontends": 900,
    "backends": 900,
    "debs": 1800,
}
"""Seconds after which pytest ends a test that has this marker and no timeout.

Each wait in such a test has a limit, and names what it waited for when that expires.
This limit catches the remaining hangs, and is long enough for a loaded machine.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that start VMs and processes more time than others."""
    for item in items:
        limits = [LAST_RESORT[one] for one in LAST_RESORT if _marked(item, one)]
        if limits and not _marked(item, "timeout"):
            item.add_marker(pytest.mark.timeout(max(limits)))


def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> Scheduling | None:
    """Start the longest files first; None stands for pytest-xdist's own way."""
    if config.getvalue("dist") == "loadfile":
        return LongestFirst(config, log)
    return None


def _marked(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is not None


def lacking(marker: str) -> list[str]:
    """Return the programs and devices of a marker that this machine lacks."""
    lacks = [need for need in NEEDS[marker] if not _is_there(need)]
    return [*lacks, "root"] if os.geteuid() and marker not in ROOTLESS else lacks


def _is_there(need: str) -> bool:
    if need in MODULES:
        return find_spec(need) is not None
    return bool(shutil.which(need)) or (need.startswith("/dev") and Path(need).exists())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose needs are missing, and name them; in CI, fail it."""
    for marker in NEEDS:
        if item.get_closest_marker(marker) and (lacks := lacking(marker)):
            stop = pytest.fail if os.environ.get("CI") else pytest.skip
            stop(f"missing: {', '.join(lacks)} (tools/setup installs what it can)")


@pytest.fixture(autouse=True)
def signals_arrive() -> Iterator[None]:
    """Let the signals arrive that a test has blocked, as a daemon does at its end.

    The next test, and each process that it starts, would have them blocked, too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor open, and name the descriptor."""
    before = open_descriptors()
    yield
    after = open_descriptors()
    if after != before:
        gc.collect()  # objects in cycles close their fds, with a ResourceWarning
        after = open_descriptors()
    # A number may be used again for another file: compare the files too.
    leaked = {fd: what for fd, what in after.items() if before.get(fd) != what}
    # A master in a shared lab that reconnects has another socket for its old one, and
    # that is no leak: what counts is whether there are more of a kind than before.
    more = _kinds(after) - _kinds(before)
    assert not more, f"left open: {more} among {leaked}"


def _kinds(descriptors: dict[int, str]) -> Counter[str]:
    """Count descriptors of a kind; `socket:[4711]` and `socket:[4712]` are of one."""
    return Counter(re.sub(r"\[\d+\]", "[]", what) for what in descriptors.values())
