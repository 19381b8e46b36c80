# SPDX-License-Identifier: Apache-2.0
"""The programs that tests need, made before a test leaves this machine's network."""

import pytest

from tests.backends import dpdk, openvswitch, passt
from tests.vm.debian import CODENAME
from tests.vm.programs import Unpacked

NEWER = "trixie"
"""The suite of Debian whose back-ends run here, beside this machine's own DPDK."""


@pytest.fixture(scope="session")
def testpmd() -> tuple[str, ...]:
    """A newer DPDK than this machine's."""
    return dpdk.of_suite(NEWER)


@pytest.fixture(scope="session", params=sorted({CODENAME, NEWER}))
def switch(request: pytest.FixtureRequest) -> Unpacked:
    """Open vSwitch with DPDK, of this machine's Debian and of a newer one."""
    suite: str = request.param
    return openvswitch.packages(suite)


@pytest.fixture(scope="session")
def stack() -> Unpacked:
    """passt."""
    return passt.packages(NEWER)
