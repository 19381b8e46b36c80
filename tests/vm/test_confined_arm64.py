# SPDX-License-Identifier: Apache-2.0
"""Confined masters of another architecture: Debian 12 and 13 for arm64, on a virt.

  master, emulated            vhostpci-host              namespace
private memory: secrets
shared region ------------------ window ---------------- vhostpci-guest --socket

Their kernels are built with a ring area.  What is searched, and how a search is seen to
find what is there, is in test_confined.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import confined
from tests.vm.confined import VIRTS, Link, Platform
from tests.vm.test_confined import (
    assert_all_is_found,
    assert_nothing_is_found,
    assert_region_has_nothing_else,
    exchange,
    exchanged,
    freed_memory_in_the_window,
    keep_secrets,
)

pytestmark = [pytest.mark.vm, pytest.mark.arm64, pytest.mark.long]


@pytest.fixture(scope="module", params=VIRTS, ids=lambda one: one.kernel.name)
def platform(request: pytest.FixtureRequest) -> Platform:
    """A virt and a kernel for it."""
    assert isinstance(request.param, Platform)
    return request.param


@pytest.fixture(scope="module")
def link(platform: Platform, logs: Path) -> Iterator[Link]:
    with exchanged(logs / platform.kernel.name, platform) as link:
        yield link


def test_no_secret_of_the_master_is_in_the_window(link: Link) -> None:
    assert_nothing_is_found(link)


def test_shared_region_is_the_bounce_pool_and_the_rings_and_nothing_else(
    link: Link,
) -> None:
    assert_region_has_nothing_else(link)


def test_check_in_the_master_finds_nothing_wrong(
    link: Link, platform: Platform
) -> None:
    assert link.check(*platform.options) == {}


def test_freed_memory_does_not_come_with_receive_buffers(link: Link) -> None:
    assert freed_memory_in_the_window(link) == 0


def test_all_of_them_are_in_the_window_of_an_ordinary_device(
    platform: Platform, logs: Path
) -> None:
    with confined.ordinary(logs / f"{platform.kernel.name}-ordinary", platform) as link:
        keep_secrets(link.master)
        exchange(link)
        assert_all_is_found(link)
