# SPDX-License-Identifier: Apache-2.0
"""A confined master in each QEMU that the other tests do not run.

The memory that QEMU shares follows from which of its memories have a descriptor, which
is QEMU's affair: another version could share more.
"""

from pathlib import Path

import pytest

from tests.vm import confined, dmesg, traffic
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS
from tests.vm.qemus import Qemu
from tests.vm.test_confined import keep_secrets, secrets
from tests.vm.test_qemus import under_test

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("version", under_test(), ids=lambda qemu: qemu.version)
def test_slave_has_the_region_and_nothing_else(logs: Path, version: Qemu) -> None:
    here = logs / f"confined-{version.version}"
    platform = confined.Platform(confined.KERNEL, qemu=version.program())
    with confined.linked(here, on=platform) as link:
        keep_secrets(link.master)
        pings = traffic.ping(link.master, SLAVE_ADDRESS)
        pings += traffic.ping(link.slave, MASTER_ADDRESS)
        region, found = link.shared_region(), search(link)
        pool, ring_area = link.master.pool(), link.master.ring_area()
        dmesg.check(link.master)
    assert pings.received == pings.sent >= 20
    assert found == dict.fromkeys(found, 0)
    assert (pool.start, pool.end, ring_area.end) == (
        region.start,
        ring_area.start,
        region.end,
    )
    assert region.pages * confined.PAGE == confined.REGION


def search(link: confined.Link) -> dict[str, int]:
    """Return how often each secret of the master is in its slave's window."""
    return confined.search(link.window, secrets(link.master)).times
