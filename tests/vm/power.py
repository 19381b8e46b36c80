# SPDX-License-Identifier: Apache-2.0
"""What a guest does with its power, and what QEMU's monitor does to it."""

import time

from tests.vm.channel import GuestError
from tests.vm.harness import Job, Vm

# All sleep first, since the answer must have left the guest before its devices stop.
TO_RAM = "sleep 1; echo deep > /sys/power/mem_sleep; echo mem > /sys/power/state"
DEVICES = "sleep 1; echo devices > /sys/power/pm_test; echo freeze > /sys/power/state"

PANIC = "sleep 1; echo c > /proc/sysrq-trigger"


def suspend_devices(vm: Vm) -> None:
    """Have the guest suspend all devices, and resume after five seconds."""
    before = _resumes(vm)
    _wait_resumed(vm, _suspend(vm, DEVICES), before)


def suspend_to_ram(vm: Vm, seconds: float) -> None:
    """Have the guest suspend to RAM (ACPI S3), and wake it after so many seconds.

    QEMU resets all devices then, as for a reboot.  Linux 6.1 does not resume when QEMU
    has started it without a boot loader; 6.12 does.
    """
    before = _resumes(vm)
    job = _suspend(vm, TO_RAM)
    wait_status(vm, "suspended")
    time.sleep(seconds)
    vm.qmp("system_wakeup")
    _wait_resumed(vm, job, before)


def wait_status(vm: Vm, wanted: str) -> None:
    """Wait until QEMU says that the VM is `running`, `paused` or `suspended`."""

    def status() -> str:
        return str(vm.qmp("query-status")["status"])

    vm.wait_until(lambda: status() == wanted, status)


def pause(vm: Vm, seconds: float) -> None:
    """Stop the VM for so many seconds."""
    vm.qmp("stop")
    time.sleep(seconds)
    vm.qmp("cont")


def reset(vm: Vm) -> None:
    """Reset the VM, whose guest cannot end anything before; wait until it is back."""
    vm.qmp("system_reset")
    vm.wait_ready()


def kill(vm: Vm) -> None:
    """Kill QEMU, start it with the same arguments, and wait for the guest."""
    vm.kill()
    vm.start()
    vm.wait_ready()


def panic(vm: Vm) -> None:
    """Have the guest's kernel crash, which reboots it; wait until it is back."""
    vm.spawn(PANIC)
    vm.wait_ready()


def _suspend(vm: Vm, how: str) -> Job:
    # Level 8: the console shows that the suspend is over.
    vm.run("echo 8 > /proc/sys/kernel/printk")
    return vm.spawn(how)


def _wait_resumed(vm: Vm, job: Job, before: int) -> None:
    """Wait for one more resume than there were before."""
    patience = vm.patience(60)
    while _resumes(vm) == before:
        if patience.is_over():
            raise GuestError(
                f"{vm.name}: not resumed within {patience}\n{vm.last_words()}"
            )
        time.sleep(0.1)
    # After a resume Linux 7.3 takes our end of the virtio-serial port for closed,
    # and keeps its answers until QEMU tells it that the port is opened again.
    vm.reconnect()
    vm.wait_until(lambda: job.poll() is not None, job.output)
    if job.poll():
        raise GuestError(f"{vm.name}: no suspend: {job.output()}")


def _resumes(vm: Vm) -> int:
    return vm.serial_log.read_bytes().count(b"PM: suspend exit")
