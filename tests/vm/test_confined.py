# SPDX-License-Identifier: Apache-2.0
"""The slave of a confined master sees the card's memory, and no other of the master.

  master                      vhostpci-host              namespace
private memory: secrets
shared region ------------------ window ---------------- vhostpci-guest --socket

Each search is seen to find what is there: in the window of an ordinary device, and, for
freed memory, in that of a master whose kernel does not clear it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import confined, dmesg, traffic
from tests.vm.confined import (
    COMMAND_LINE,
    MIB,
    PAGE,
    Q35,
    ConfinedMaster,
    Link,
    Platform,
)
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS

pytestmark = pytest.mark.vm

ANONYMOUS, FILE, LINE, IMAGE = "memory", "page cache", "command line", "kernel"
KEPT = {ANONYMOUS: 64, FILE: 8}
"""MiB of each secret."""
FREED = "freed"
PATTERN = "7668c0de"
"""The payload of pings, which is in the window."""


def secrets(master: ConfinedMaster) -> dict[str, bytes]:
    """What the search looks for, each by its place in the master's memory."""
    return {
        ANONYMOUS: confined.digest(ANONYMOUS),
        FILE: confined.digest(FILE),
        LINE: COMMAND_LINE.encode(),
        IMAGE: f"Linux version {master.kernel} (".encode(),
    }


def keep_secrets(master: ConfinedMaster) -> None:
    """Have the master keep all of them, but for those that it has anyway."""
    master.keep(ANONYMOUS, KEPT[ANONYMOUS])
    master.write(FILE, KEPT[FILE], "/root/secret")


def exchange(link: Link) -> None:
    """Have packets cross, both ways."""
    for back in (False, True):
        with traffic.iperf_server(link.master):
            assert traffic.tcp(link.slave, MASTER_ADDRESS, 2, back=back) > 0
    options = f"-p {PATTERN}"
    pings = traffic.ping(link.master, SLAVE_ADDRESS, options=options)
    pings += traffic.ping(link.slave, MASTER_ADDRESS, options=options)
    assert pings.received == pings.sent >= 20


@contextmanager
def exchanged(logs: Path, on: Platform = Q35) -> Iterator[Link]:
    """A confined master that keeps secrets, and has sent and received."""
    with confined.linked(logs, on=on) as link:
        keep_secrets(link.master)
        exchange(link)
        yield link
        dmesg.check(link.master)


@pytest.fixture(scope="module")
def link(logs: Path) -> Iterator[Link]:
    with exchanged(logs / "confined") as link:
        yield link


def test_no_secret_of_the_master_is_in_the_window(link: Link) -> None:
    assert_nothing_is_found(link)


def assert_nothing_is_found(link: Link) -> None:
    ping = {"a ping": bytes.fromhex(PATTERN) * 4}
    found = confined.search(link.window, secrets(link.master) | ping)
    assert found.times.pop("a ping") > 0  # it is the memory that is in use
    assert found.times == dict.fromkeys(secrets(link.master), 0)
    assert found.bytes == link.window.stat().st_size > confined.REGION


def test_all_of_them_are_in_the_window_of_an_ordinary_device(logs: Path) -> None:
    with confined.ordinary(logs / "ordinary") as link:
        keep_secrets(link.master)
        exchange(link)
        assert_all_is_found(link)


def assert_all_is_found(link: Link) -> None:
    found = confined.search(link.window, secrets(link.master)).times
    for name, mib in KEPT.items():
        assert found[name] >= mib * MIB // len(confined.digest(name))
    assert found[LINE] > 0
    assert found[IMAGE] > 0


def test_shared_region_is_the_bounce_pool_and_the_rings_and_nothing_else(
    link: Link,
) -> None:
    assert_region_has_nothing_else(link)


def assert_region_has_nothing_else(link: Link) -> None:
    """By the master's own kernel, which tells what each of its pages is used for."""
    region, pool, ring_area = (
        link.shared_region(),
        link.master.pool(),
        link.master.ring_area(),
    )
    assert (region.start, pool.end, ring_area.end) == (
        pool.start,
        ring_area.start,
        region.end,
    )
    assert link.master.pages(pool) == confined.Pages({"reserved": pool.pages}, 0)
    rings = link.master.pages(ring_area)
    # Neither movable pages of processes, which Linux may put there, nor anything else.
    assert set(rings.kinds) == {"allocated", "free"}
    assert rings.mapped == 0
    assert rings.kinds["allocated"] - link.master.atomic_pools() < MIB // PAGE


def test_check_in_the_master_finds_nothing_wrong(link: Link) -> None:
    """With the words of `qemu-args`, and while it keeps secrets and has traffic."""
    assert link.check() == {}


def test_freed_memory_does_not_come_with_receive_buffers(link: Link) -> None:
    assert freed_memory_in_the_window(link) == 0


def test_freed_memory_comes_where_the_kernel_does_not_clear_it(logs: Path) -> None:
    words = [("init_on_alloc=1", "init_on_alloc=0")]
    with confined.linked(logs / "not-cleared", words=words) as link:
        assert freed_memory_in_the_window(link) > 1000


def freed_memory_in_the_window(link: Link) -> int:
    """Return how often a secret is there that was in 300 MiB, before they were freed.

    The receive buffers after that are in memory that is free.
    """
    link.master.free(FREED, 300)
    link.receive()
    return confined.search(link.window, {FREED: confined.digest(FREED)}).times[FREED]
