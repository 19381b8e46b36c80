# SPDX-License-Identifier: Apache-2.0
"""A master VM and a slave VM with our daemon between them.

  master                 hypervisor               slave
10.77.0.1               vhostpci-host           10.77.0.2
  eth0 ------ vhost-user ----+---- ivshmem ------ vp0
virtio-net                                   vhostpci-guest
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.vm import image, traffic, wheels
from tests.vm.addons import Addon
from tests.vm.channel import GuestError
from tests.vm.daemon import CARRIER_STAYS, Daemon
from tests.vm.harness import Job, Vm
from tests.vm.kernels import THIS_DEBIAN, Kernel
from tests.vm.scene import State
from tests.vm.show import SILENT, Progress

MASTER_ADDRESS = "10.77.0.1"
SLAVE_ADDRESS = "10.77.0.2"
TAP = "vp0"
LINK_TIMEOUT = 60.0


class Master(Vm):
    """The master; its guest has nothing of this project."""

    address = MASTER_ADDRESS

    def configure(self) -> None:
        """Give the card its address, and wait until its link is up."""
        self.wait_until(lambda: self.has_interface("eth0"), lambda: "eth0")
        self.run(f"ip addr replace {self.address}/24 dev eth0 && ip link set eth0 up")
        self.wait_until(lambda: self.has_carrier("eth0"), lambda: "a carrier of eth0")

    def reload_driver(self) -> None:
        """Unload virtio-net and load it again; `configure` must follow."""
        self.run("modprobe -r virtio_net && modprobe virtio_net")


class Slave(Vm):
    """The slave VM, which runs the agent."""

    @contextmanager
    def agent(self, bind: str, *options: str) -> Iterator[Job]:
        """Run the agent while the block runs; wait for its TAP before the block."""
        address = ("--tap", TAP, "--address", f"{SLAVE_ADDRESS}/24")
        with self.waiting_agent("--bind", bind, *address, *options) as job:
            self.wait_tap(job)
            yield job

    @contextmanager
    def waiting_agent(self, *options: str) -> Iterator[Job]:
        """Run the agent while the block runs, whether it has a device or not."""
        job = self.spawn(["vhostpci-guest", "run", *options])
        try:
            yield job
        finally:
            with suppress(GuestError):  # the guest may be what failed
                job.stop()
                self._keep_output(job)

    def _keep_output(self, job: Job) -> None:
        with self.serial_log.with_name(f"{self.name}.agent.log").open("a") as log:
            log.write(job.output())

    def _written(self, job: Job) -> str:
        """What an agent has written; never nothing, as an error ends with it."""
        try:
            return job.output().strip() or "(nothing)"
        except GuestError as error:
            return f"(the guest does not tell: {error})"

    def _has_tap(self) -> bool:
        """Whether the TAP is there and has its address."""
        # Programs in the guest would keep its processor from the agent that starts.
        if not self.has_interface(TAP):
            return False
        shown = self.run(f"ip addr show {TAP}", check=False)
        return SLAVE_ADDRESS in shown.stdout

    def wait_tap(self, job: Job) -> None:
        """Wait until the agent has made its TAP."""
        patience = self.patience(LINK_TIMEOUT)
        while not self._has_tap():
            status = job.poll()
            if status is not None or patience.is_over():
                state = (
                    f"has made no {TAP} within {patience}"
                    if status is None
                    else f"ended with status {status}"
                )
                raise GuestError(
                    f"{self.name}: vhostpci-guest {state}; it has written:\n"
                    f"{self._written(job)}\n{self.last_words()}"
                )
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both VMs up, the daemon between them."""

    daemon: Daemon
    master: Master
    slave: Slave

    def ping_both_ways(self, count: int = 10, *, apart: bool = False) -> traffic.Ping:
        """Ping from each VM to the other; see `traffic.ping`."""
        return traffic.ping(
            self.master, SLAVE_ADDRESS, count, apart=apart
        ) + traffic.ping(self.slave, MASTER_ADDRESS, count, apart=apart)

    def assert_packets_cross(self) -> None:
        """Give the master's card its address, and see that all pings come back."""
        self.master.configure()
        self.wait_link()
        ping = self.ping_both_ways()
        # Not "assert": pytest shows the text of an assertion in test files only.
        if ping.received != ping.sent:
            raise AssertionError(f"{ping}\n{self.counters()}")

    def counters(self) -> str:
        """Return what the agent and the daemon count, to be read after a failure."""
        agents = json.dumps(self.slave.agents(), indent=1)
        status = json.dumps(self.daemon.status(), indent=1)
        return f"--- the agent\n{agents}\n--- the daemon\n{status}"

    def wait_link(self) -> None:
        """Wait until the slave's TAP has a carrier, and a first packet crossed."""
        self.slave.wait_until(
            lambda: self.slave.has_carrier(TAP), lambda: f"a carrier of {TAP}"
        )
        # A slave with a back-end that polls is slow without KVM, which the clock of the
        # master, in whose time the limit is, does not show.
        self.master.wait_for(f"ping -n -q -c 1 -W 1 {SLAVE_ADDRESS}", 2 * LINK_TIMEOUT)


def make(
    daemon: Daemon,
    logs: Path,
    kernel: Kernel = THIS_DEBIAN,
    *,
    module: bool = False,
    packed: bool = False,
    addons: Sequence[Addon] = (),
) -> tuple[Master, Slave]:
    """Return both VMs, not started.

    Args:
        daemon: whose device connects them.
        logs: where they write their logs.
        kernel: the slave's.
        module: whether the slave has our kernel module.
        packed: whether the master's card has packed rings.
        addons: more programs that the slave has.
    """
    ours = wheels.guest_wheels()
    guest = image.build(ours, kernel, module=module, addons=addons)
    args = [*daemon.qemu_args("slave"), *kernel.qemu_args()]
    card = daemon.qemu_args("master", *(["--packed"] if packed else []))
    return (
        Master("master", image.build(ours), logs=logs, args=card),
        Slave("slave", guest, logs=logs, args=args, iommu=True),
    )


@contextmanager
def booted(
    logs: Path,
    say: Progress = SILENT,
    kernel: Kernel = THIS_DEBIAN,
    *,
    module: bool = False,
    packed: bool = False,
    carrier_grace: str = CARRIER_STAYS,
    features: str | None = None,
    addons: Sequence[Addon] = (),
) -> Iterator[Pair]:
    """The daemon and both VMs, waiting for commands; no agent runs."""
    say(
        "starting the daemon",
        "vhostpci-host makes the master's memory, and introduces the two VMs",
    )
    with Daemon(
        "demo",
        memory="512M",
        logs=logs,
        carrier_grace=carrier_grace,
        features=features,
    ) as daemon:
        master, slave = make(
            daemon, logs, kernel, module=module, packed=packed, addons=addons
        )
        say.set(State.THERE, "daemon")
        say("booting both VMs", "stock QEMU and Debian's kernel: nothing is patched")
        say.set(State.COMING, "master", "slave")
        with slave, master:
            slave.wait_ready()
            say.set(State.THERE, "slave")
            master.wait_ready()
            say.set(State.THERE, "master")
            yield Pair(daemon, master, slave)
