# SPDX-License-Identifier: Apache-2.0
"""What hot-plug rests on: QEMU's ports, and the kernel of a Debian guest.

test (ivshmem server) ──unix socket──► QEMU ◄──QMP── test
                                        guest: Debian's kernel, no daemon
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.assumptions import qtest
from tests.vm import image, qemu, wheels
from tests.vm.harness import Job, Vm
from tests.vm.qmp import Qmp
from tests.waiting import wait_for

pytestmark = [pytest.mark.vm, pytest.mark.timeout(200)]

MIB = 2**20
SMALL = [
    *("-device", "pcie-root-port,id=small,chassis=8,slot=8"),
    *("-device", "pcie-root-port,id=crowded,chassis=9,slot=9"),
]
"""Ports as they come, without `pref64-reserve`."""

# For each window: address, IVPosition, bytes of BAR 2.
LOOK = """
import ctypes, mmap, pathlib
for device in pathlib.Path("/sys/bus/pci/devices").iterdir():
    if (device / "device").read_text() != "0x1110\\n":
        continue
    bars = [line.split() for line in (device / "resource").read_text().splitlines()]
    (start, _), (low, high) = ([int(word, 16) for word in bars[n][:2]] for n in (0, 2))
    (device / "enable").write_text("1")
    with (device / "resource0").open("r+b") as file:
        registers = mmap.mmap(file.fileno(), 256)
        page = ctypes.addressof(ctypes.c_char.from_buffer(registers))
        own_id = ctypes.c_uint32.from_address(page + start % mmap.PAGESIZE + 8).value
        print(device.name, own_id, high and high - low + 1)
    (device / "enable").write_text("0")
"""
# As the agent takes a device.
HOLD = """
import sys, time
from vhostpci_guest import pci, sysfs, vfio
device = {"sysfs": sysfs, "vfio": vfio}[sys.argv[1]].bind(pci.at(sys.argv[2]))
print("holds it", flush=True)
time.sleep(60)
"""


class Slave:
    """A running VM that windows are plugged into, with a memory and vectors each."""

    def __init__(self, vm: Vm, directory: Path, monitor: Qmp) -> None:
        self.vm = vm
        self.monitor = monitor
        self.vectors: dict[int, list[int]] = {}
        """Our ends of the vectors of what is plugged in, by its window."""
        self.memory: dict[int, int] = {}
        """The memory of the same."""
        self._directory = directory
        self._undo = ExitStack()

    def plug(self, window: int, size: int, bus: str, vectors: int = 1) -> int:
        """Plug a window in; return its memory, which stays ours."""
        server = self._connect(window)
        memory = qtest.memory(size)
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(vectors)]
        for fd in (memory, *fds):
            self._undo.callback(os.close, fd)
        self.vectors[window], self.memory[window] = fds, memory
        server.hello(window, memory, fds)
        device = {"driver": "ivshmem-doorbell", "id": f"w{window}", "bus": bus}
        device |= {"chardev": f"c{window}"}
        self.monitor.execute("device_add", device | {"vectors": vectors})
        return memory

    def _connect(self, window: int) -> qtest.Server:
        """Have QEMU connect, which it does while it adds the chardev."""
        path = str(self._directory / f"{window}.{time.monotonic_ns()}")
        address = {"type": "unix", "data": {"path": path}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            self.monitor.execute(
                "chardev-add", {"id": f"c{window}", "backend": backend}
            )
            return self._undo.enter_context(qtest.Server(listener.accept()[0]))

    def ask_back(self, window: int) -> None:
        """Ask the guest to let go of a window."""
        self.monitor.execute("device_del", {"id": f"w{window}"})

    def goes(self, window: int, timeout: float = 5) -> bool:
        """Whether the guest lets go of a window in time."""
        if not self.monitor.deleted(f"w{window}", timeout):
            return False
        self.monitor.execute("chardev-remove", {"id": f"c{window}"})
        del self.vectors[window], self.memory[window]
        return True

    def windows(self) -> dict[int, tuple[str, int]]:
        """Address and size of the guest's windows, by their IVPosition."""
        rows = self.vm.run(["python3", "-c", LOOK]).stdout.splitlines()
        words = [row.split() for row in rows]
        return {int(word[1]): (word[0], int(word[2])) for word in words}

    def wait_windows(self, *windows: int) -> dict[int, tuple[str, int]]:
        """The same, once these are there."""
        wait_for(lambda: set(windows) <= self.windows().keys(), self.windows)
        return self.windows()

    def hold(self, window: int, how: str) -> Job:
        """Have a process of the guest that has a window mapped."""
        address, _ = self.wait_windows(window)[window]
        self.vm.put("/tmp/hold.py", HOLD.encode())
        job = self.vm.spawn(f"exec python3 /tmp/hold.py {how} {address}")
        wait_for(lambda: "holds it" in job.output(), job.output, 20)
        return job

    def close(self) -> None:
        """Unplug all; the ports are free then, for the next test."""
        for window in list(self.vectors):
            self.ask_back(window)
            assert self.goes(window)
        mend(self.monitor)
        self._undo.close()


def mend(monitor: Qmp) -> None:
    """Take away the handlers that QEMU has left behind.

    A descriptor that QEMU is given gets the lowest free number, and a netdev of the
    type "socket" registers a handler of its own for it, and takes it away.
    """
    names = [f"mend{number}" for number in range(16)]
    with ExitStack() as stack:
        for name in names:
            pair = [
                stack.enter_context(one)
                for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            ]
            monitor.execute("getfd", {"fdname": name}, [pair[0].fileno()])
        for name in names:
            monitor.execute("netdev_add", {"type": "socket", "id": name, "fd": name})
            monitor.execute("netdev_del", {"id": name})


@contextmanager
def started(
    logs: Path, args: list[str], chipset: str = "q35", guest: image.Image | None = None
) -> Iterator[Slave]:
    """Boot a VM with these ports; it has a vIOMMU on q35."""
    with (
        TemporaryDirectory() as name,
        Vm(
            *("slave", guest or image.build(wheels.guest_wheels())),
            logs=logs,
            args=args,
            memory="384M",
            iommu=chipset == "q35",
            chipset=chipset,
        ) as vm,
    ):
        vm.wait_ready()
        with Qmp(vm.run_dir / "slave-qmp") as monitor:
            slave = Slave(vm, Path(name), monitor)
            yield slave
            slave.close()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with two ports that have room, and small ones."""
    logs = tmp_path_factory.mktemp("hotplug")
    with started(logs, [*qemu.ports(2), *SMALL]) as slave:
        yield slave


@pytest.fixture
def slave(booted: Slave) -> Iterator[Slave]:
    """The same, with nothing plugged."""
    yield booted
    booted.close()


def test_ports_with_a_reserve_take_large_windows(slave: Slave) -> None:
    """So the slave's ports have one, of the largest master's size."""
    slave.plug(300, 512 * MIB, "port0")
    slave.plug(301, 1024 * MIB, "port1")
    there = slave.wait_windows(300, 301)
    assert there[300][1] == 512 * MIB
    assert there[301][1] == 1024 * MIB


def test_large_window_in_a_port_as_it_comes_has_no_address(slave: Slave) -> None:
    """So operations.md asks for a reserve, and the daemon looks at the result."""
    slave.plug(300, 512 * MIB, "small")
    assert slave.wait_windows(300)[300][1] == 0


def test_second_device_in_a_port_is_taken_and_never_seen(slave: Slave) -> None:
    """So the daemon looks for a port that is empty: QEMU does not refuse."""
    slave.plug(398, MIB, "crowded")
    slave.plug(399, MIB, "crowded")
    slave.wait_windows(398)
    time.sleep(1)
    assert 399 not in slave.windows()
    del slave.vectors[399]  # it goes with the other one, without a word


def test_window_that_is_mapped_from_sysfs_goes_at_once(slave: Slave) -> None:
    """So the agent must survive that; its mapping is void then."""
    slave.plug(300, 256 * MIB, "port0")
    job = slave.hold(300, "sysfs")
    slave.ask_back(300)
    assert slave.goes(300)
    job.stop()


def test_window_that_vfio_has_open_holds_up_all_others(slave: Slave) -> None:
    """So the agent lets go before it is asked, or when vfio asks it to."""
    slave.plug(300, 256 * MIB, "port0")
    slave.plug(301, 256 * MIB, "port1")
    job = slave.hold(300, "vfio")
    slave.ask_back(300)
    assert not slave.goes(300, timeout=2)
    slave.ask_back(301)
    assert not slave.goes(301, timeout=1)
    job.stop()
    assert slave.goes(300)
    assert slave.goes(301)


@pytest.mark.skipif(qemu.has_kvm(), reason="with KVM the vectors have no handlers")
def test_unplugged_vectors_leave_handlers_that_a_netdev_takes_away(
    slave: Slave,
) -> None:
    """So without KVM we do that after each unplug.

    ivshmem watches its own vectors' eventfds (ivshmem-pci.c, watch_vector_notifier),
    and closes them without an end to that.  The event loop then spins, and the next
    descriptor of that number, once readable, has QEMU use freed memory.
    """
    slave.plug(300, MIB, "port0", vectors=3)
    slave.wait_windows(300)
    slave.ask_back(300)
    assert slave.goes(300)
    spinning = busy(slave.vm)
    assert spinning > 0.1  # of whatever the rest of the machine leaves it
    mend(slave.monitor)
    assert busy(slave.vm) < spinning / 4


def busy(vm: Vm) -> float:
    """Return what part of a second QEMU's event loop was busy."""
    before = vm.cpu_seconds()
    time.sleep(1)
    return vm.cpu_seconds() - before


def test_i440fx_takes_windows_side_by_side(tmp_path: Path) -> None:
    """All slots of its bus are hot-pluggable, and the 64-bit hole is 2 GiB."""
    with started(tmp_path, [], "pc") as slave:
        slave.plug(300, 512 * MIB, "pci.0")
        slave.plug(301, 1024 * MIB, "pci.0")
        there = slave.wait_windows(300, 301)
        assert there[300][1] == 512 * MIB
        assert there[301][1] == 1024 * MIB
