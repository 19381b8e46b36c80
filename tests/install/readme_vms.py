# SPDX-License-Identifier: Apache-2.0
"""VMs that QEMU runs in a fresh Debian, by the README's own commands."""

from pathlib import Path

from tests.install.disk import Disk
from tests.install.fresh import FreshMachine
from tests.vm import image, qemu
from tests.vm.harness import Vm

BOOT = 300.0
"""Seconds of the guest's: systemd starts some thirty programs, in an emulated VM."""

APPEND = f"{qemu.APPEND} root=/dev/vda rw fsck.mode=skip"


class ReadmeVm(Vm):
    """A VM with Debian and systemd on a disk, which reboots as a user does it.

    Args:
        role: "master" or "slave".
        command: the README's, with `-drive file=ROLE.img,if=virtio`.
        machine: where QEMU runs.
        place: the directory for the VM's disk.
        debian: what it boots.
        logs: where it writes its logs.
        more: further arguments for QEMU.
    """

    def __init__(
        self,
        role: str,
        command: str,
        machine: FreshMachine,
        place: Path,
        debian: Disk,
        logs: Path,
        *more: str,
    ) -> None:
        booted = image.Image(debian.kernel, debian.initrd, "")
        super().__init__(role, booted, logs=logs)
        drive = f"-drive file={role}.img,if=virtio"
        assert drive in command
        # "Write your own disk and display arguments in place of -drive ..."
        command = command.replace(drive, r"\"\$@\"")
        # The process that we start shall be QEMU.
        self._script = _as_on_this_machine(command).replace('"', '"exec ', 1)
        self._machine = machine
        self._own = ["-name", role, "-display", "none", "-kernel", str(debian.kernel)]
        self._own += ["-initrd", str(debian.initrd), "-append", APPEND]
        disk = debian.copy(place / f"{role}.img")
        self._own += ["-drive", f"file={disk},if=virtio,format=raw", *more]

    def _command(self) -> list[str]:
        for place in (self.run_dir, self.serial_log.parent):
            self._machine.share(place)
        return [*self._machine.command(self._script, *self._own)]

    def begin_reboot(self) -> None:
        """Have systemd reboot the guest; `wait_rebooted` must follow."""
        self.spawn("systemctl reboot")

    def reboot(self, timeout: float = BOOT) -> None:
        """Reboot the guest and wait until it takes commands again."""
        self.begin_reboot()
        self.wait_rebooted(timeout)


def _as_on_this_machine(command: str) -> str:
    """Change a command as the README's table says, if this machine has no KVM."""
    if qemu.has_kvm():
        return command
    without = command.replace("-accel kvm -cpu host ", "")
    assert without != command
    return without.replace("qemu-args net0", "qemu-args net0 --tcg")
