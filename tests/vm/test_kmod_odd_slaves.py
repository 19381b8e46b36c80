# SPDX-License-Identifier: Apache-2.0
"""The slave's kernel module in a VM that differs in two ways from most.

 test (ivshmem server)            slave, threadirqs
window 0 --- QMP --- root port --- uio_vhostpci
                     below 4 GiB
"""

from collections.abc import Iterator

import pytest

from tests.vm import node, qemu, vector_loop
from tests.vm.bare_slave import Slave, module_loaded
from tests.vm.kernels import THIS_DEBIAN

pytestmark = pytest.mark.vm

MIB = 2**20
LOW = ["-device", "pcie-root-port,id=low,chassis=1,slot=1"]
"""A root port that SeaBIOS gives addresses below 4 GiB."""
THREADS = ["-append", f"{qemu.APPEND} threadirqs"]
"""Interrupt handlers are threads, as in a kernel with PREEMPT_RT."""


@pytest.fixture(scope="module")
def slave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """The VM with a bound device."""
    logs = tmp_path_factory.mktemp("odd-slaves")
    with module_loaded(logs, THIS_DEBIAN, *LOW, *THREADS, ports=0) as slave:
        slave.plug(0, MIB, "low", vectors=3)
        yield slave


def test_window_below_4_gib_is_warned_of(slave: Slave) -> None:
    slave.vm.wait_for("dmesg | grep -q 'BAR 2 is below 4 GiB'")
    node.use(slave.vm).stop()


def test_handler_in_a_thread_does_not_ring_the_doorbell_of_its_own_vector(
    slave: Slave,
) -> None:
    assert slave.vm.run("grep -c threadirqs /proc/cmdline").stdout == "1\n"
    vector_loop.assert_none(slave)
