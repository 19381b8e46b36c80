# SPDX-License-Identifier: Apache-2.0
"""DPDK in the slave VM as the agent's data plane, in place of our threads.

  master            vhostpci-host             slave
virtio-net --- vhost-user, ivshmem --- vhostpci-guest --- vhost-user --- testpmd --- vp0

testpmd forwards all packets between the master's card and a TAP that it makes.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm import pair
from tests.vm.addons import DPDK
from tests.vm.harness import Job
from tests.vm.pair import SLAVE_ADDRESS, TAP, Pair, Slave
from tests.vm.show import SILENT, Progress

SOCKET = "/run/back-end.sock"
DATA_PLANE = ("--data-plane", f"vhost-user:{SOCKET}")
"""The options of the agent that testpmd connects to."""

# It ends at the end of its input, which a FIFO that it has open for writing, too, has
# not.  Both of its threads share a processor with the agent: the slave has one only.
COMMAND = (
    "test -p /run/input || mkfifo /run/input; "
    "RUNTIME_DIRECTORY=/run exec stdbuf -oL dpdk-testpmd "
    "--lcores 0@0,1@0 --no-huge -m 64 --no-pci --no-telemetry "
    f"--vdev net_vhost0,iface={SOCKET},client=1 --vdev net_tap0,iface={TAP} "
    "-- --interactive --auto-start --forward-mode=io --total-num-mbufs=4096 "
    "<>/run/input"
)
BOOTS = 120.0


@contextmanager
def booted(
    logs: Path, say: Progress = SILENT, *, module: bool = False
) -> Iterator[Pair]:
    """Both VMs, without an agent; the master is offered what DPDK can do."""
    with pair.booted(logs, say, module=module, features="dpdk", addons=[DPDK]) as link:
        yield link


@contextmanager
def agent(slave: Slave, bind: str) -> Iterator[Job]:
    """Run the agent while the block runs."""
    with slave.waiting_agent("--bind", bind, *DATA_PLANE) as job:
        yield job


@contextmanager
def testpmd(slave: Slave) -> Iterator[None]:
    """Run testpmd while the block runs."""
    job = slave.spawn(COMMAND)
    try:
        job.wait_said("testpmd>", timeout=BOOTS)
        address = f"ip addr replace {SLAVE_ADDRESS}/24 dev {TAP}"
        slave.run(f"{address} && ip link set {TAP} up")
        yield
    finally:
        job.send(signal.SIGKILL)
        job.wait(BOOTS)


@contextmanager
def served(slave: Slave, bind: str) -> Iterator[None]:
    """Run the agent and testpmd while the block runs."""
    with agent(slave, bind), testpmd(slave):
        yield
