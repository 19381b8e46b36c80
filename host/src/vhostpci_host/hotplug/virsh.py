# SPDX-License-Identifier: Apache-2.0
"""Run virsh, libvirt's command line, with a time limit; explain its errors."""

import asyncio
import os

from vhostpci_shared.limits import exhausted, no_descriptors

from .programs import Children, Programs
from .vm import PlugError, VmAway

ANSWER_TIME = 10.0
"""Seconds that libvirt has to answer a question."""
FILE = "/dev/fd/%d"
"""The word of a command that `run` replaces by the path of the file to read."""


class Virsh:
    """Runs virsh.

    Args:
        uri: which libvirt; None means LIBVIRT_DEFAULT_URI, else qemu:///system.
        answer_time: seconds that it has to answer.
        programs: runs it.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        answer_time: float = ANSWER_TIME,
        programs: Programs | None = None,
    ) -> None:
        # virsh without a URI would ask qemu:///session for all users but root.
        self.uri = uri or os.environ.get("LIBVIRT_DEFAULT_URI", "qemu:///system")
        self._answer_time = answer_time
        self._programs = programs or Children()

    async def run(
        self, *words: str, more_time: float = 0, file: str = "", fd: int | None = None
    ) -> str:
        """Run a command; return what it prints.

        Args:
            words: the command.
            more_time: seconds that it may take on top of `answer_time`.
            file: the content of the file that the command reads as FILE.
            fd: a descriptor that virsh inherits under the same number.

        Raises:
            VmAway: libvirt cannot be asked, or does not answer.
            PlugError: it refuses; the text is its reason.
        """
        # A memfd, not a temporary file: it needs no directory and no clean-up.
        # System calls: memfd_create.
        try:
            memory = os.memfd_create("vhostpci")
        except OSError as error:
            raise _cannot_run(error) from error
        with open(memory, "w") as stream:
            stream.write(file)
            # virsh opens the file by its path, and so reads it from the start.
            stream.flush()
            name = FILE % stream.fileno()
            argv = [name if word == FILE else word for word in words]
            fds = [stream.fileno()] if fd is None else [stream.fileno(), fd]
            return await self._finish(argv, fds, self._answer_time + more_time)

    async def _finish(self, argv: list[str], fds: list[int], limit: float) -> str:
        # The code compares virsh's messages: have them in English.
        env = os.environ | {"LC_ALL": "C"}
        try:
            async with asyncio.timeout(limit):
                command = ["virsh", "-q", "-c", self.uri, *argv]
                done = await self._programs.run(command, env, fds)
        except TimeoutError:
            raise VmAway(
                f"libvirt at {self.uri} does not answer within {limit:g} s: does its "
                "daemon hang, or the slave's QEMU?",
                code="H111",
            ) from None
        except OSError as error:
            raise _cannot_run(error) from error
        # A command that failed has nothing of use on stdout.
        if done.status:
            raise self._error(_reason(done.err.decode(errors="replace")))
        return done.out.decode(errors="replace")

    def _error(self, reason: str) -> PlugError:
        if "failed to connect to the hypervisor" not in reason:
            return PlugError(reason, code="H113")
        return VmAway(
            f"libvirt at {self.uri} does not answer: {reason}; start libvirtd (or "
            f"virtqemud), and let uid {os.geteuid()} use it (group libvirt)",
            code="H114",
        )


def _cannot_run(error: OSError) -> VmAway:
    if exhausted(error):
        why = no_descriptors(error)
        return VmAway(f"cannot run virsh: {why}", code=why.code)
    return VmAway(
        f"cannot run virsh: {error.strerror}; install it (libvirt-clients), "
        "or give the slave's QMP socket if libvirt does not manage it",
        code="H112",
    )


def _reason(err: str) -> str:
    """Return virsh's words on one line; where a command failed, only the cause."""
    lines = [line.removeprefix("error: ").strip() for line in err.splitlines()]
    said = [line for line in lines if line]
    if len(said) > 1 and said[0].startswith("Failed to "):
        said = said[1:]
    return "; ".join(said) or "it gives no reason"
