# SPDX-License-Identifier: Apache-2.0
"""A slave VM without a daemon: the test plugs its windows, and is their other end.

test (ivshmem servers) ── unix sockets ──► QEMU ◄── QMP ── test
                                           guest: Debian's kernel
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.assumptions import qtest
from tests.vm import dmesg, image, qemu, wheels
from tests.vm.harness import Job, Vm
from tests.vm.kernels import Kernel
from tests.vm.qmp import Qmp, QmpError

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
# As the agent binds a device.
HOLD = """
import sys, time
from vhostpci_guest.pci import bindings, search
device = bindings.bind(search.at(sys.argv[2]), sys.argv[1])
print("holds it", flush=True)
time.sleep(60)
"""


class Slave:
    """A running VM; windows are plugged into it, each with its memory and vectors."""

    def __init__(self, vm: Vm, directory: Path, monitor: Qmp) -> None:
        self.vm = vm
        self.monitor = monitor
        self.vectors: dict[int, list[int]] = {}
        """The eventfds of a plugged device's vectors, by its window."""
        self.memory: dict[int, int] = {}
        """The memory file of a plugged device, by its window."""
        self._servers: dict[int, qtest.Server] = {}
        self._directory = directory
        self._undo = ExitStack()

    def plug(
        self,
        window: int,
        size: int,
        bus: str,
        vectors: int = 1,
        position: int | None = None,
    ) -> int:
        """Plug a window in; return its memory file, which `close` closes.

        Its IVPosition is the window's number, unless `position` says another.
        """
        server = self._connect(window)
        memory = qtest.memory(size)
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(vectors)]
        for fd in (memory, *fds):
            self._undo.callback(os.close, fd)
        self.vectors[window], self.memory[window] = fds, memory
        self._servers[window] = server
        server.hello(window if position is None else position, memory, fds)
        device = {"driver": "ivshmem-doorbell", "id": f"w{window}", "bus": bus}
        device |= {"chardev": f"c{window}"}
        try:
            self.monitor.execute("device_add", device | {"vectors": vectors})
        except QmpError:
            self.forget(window)
            raise
        return memory

    def meet(self, window: int, peer: int, vectors: int = 2) -> list[int]:
        """Let another peer join a device's server; return its vectors' eventfds."""
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(vectors)]
        for fd in fds:
            self._undo.callback(os.close, fd)
            self._servers[window].send(peer, fd)
        self._servers[window].wait_read()
        return fds

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
        """Ask the guest to release a window."""
        self.monitor.execute("device_del", {"id": f"w{window}"})

    def is_released(self, window: int, timeout: float = 60) -> bool:
        """Whether the guest releases a window within so much of its own time."""
        patience = self.vm.patience(timeout)
        while not self.monitor.deleted(f"w{window}", min(timeout, 1)):
            if patience.is_over():
                return False
        return True

    def goes(self, window: int, timeout: float = 60) -> bool:
        """The same; what the window leaves in QEMU is removed if so."""
        if not self.is_released(window, timeout):
            return False
        # What is plugged next would get the descriptors that QEMU still watches.
        clear_handlers(self.monitor)
        self.forget(window)
        return True

    def forget(self, window: int) -> None:
        """Remove what a device that is gone, or never came, leaves in QEMU and here."""
        self.monitor.execute("chardev-remove", {"id": f"c{window}"})
        del self.vectors[window], self.memory[window]

    def windows(self) -> dict[int, tuple[str, int]]:
        """Address and size of the guest's windows, by their IVPosition."""
        rows = self.vm.run(["python3", "-c", LOOK]).stdout.splitlines()
        words = [row.split() for row in rows]
        return {int(word[1]): (word[0], int(word[2])) for word in words}

    def wait_windows(self, *windows: int) -> dict[int, tuple[str, int]]:
        """Return the guest's windows as soon as it has all of these."""
        self.vm.wait_until(lambda: set(windows) <= self.windows().keys(), self.windows)
        return self.windows()

    def hold(self, window: int, how: str) -> Job:
        """Start a process in the guest that maps a window, and wait until it has."""
        address, _ = self.wait_windows(window)[window]
        self.vm.put("/tmp/hold.py", HOLD.encode())
        job = self.vm.spawn(f"exec python3 /tmp/hold.py {how} {address}")
        job.wait_said("holds it")
        return job

    def close(self) -> None:
        """Unplug all windows, so that the root ports are free for the next test."""
        for window in list(self.vectors):
            self.ask_back(window)
            assert self.goes(window)
        self._undo.close()


def clear_handlers(monitor: Qmp) -> None:
    """Remove the handlers that QEMU without KVM keeps after an unplug.

    They are for the descriptors of the device's vectors, which are closed.  QEMU gives
    a descriptor that it receives the lowest free number, one of those; a netdev of the
    type "socket" puts its own handler in the place of the old one, and removes it.
    Without this, a plug later gets those numbers, and QEMU ends without a message when
    one becomes readable (the daemon's hotplug/tcg_eventfds.py).
    """
    names = [f"clear{number}" for number in range(16)]
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
    """Boot a VM with these arguments; it has a vIOMMU on q35."""
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


@contextmanager
def module_loaded(
    logs: Path, kernel: Kernel, *args: str, ports: int = 1
) -> Iterator[Slave]:
    """Boot a VM with root ports and our module; check its kernel's log at the end."""
    guest = image.build(wheels.guest_wheels(), kernel, module=True)
    args = (*qemu.ports(ports), *kernel.qemu_args(), *args)
    with started(logs, [*args], guest=guest) as slave:
        slave.vm.run("mount -t debugfs debugfs /sys/kernel/debug")
        slave.vm.run("modprobe uio_vhostpci")
        yield slave
        dmesg.check(slave.vm)
