# SPDX-License-Identifier: Apache-2.0
"""How the log names the process at the other end of a socket."""

import os
from pathlib import Path

from vhostpci_host.sockets import process_text


def test_process_is_named_with_its_number_and_name() -> None:
    name = Path("/proc/self/comm").read_text().strip()
    assert process_text(os.getpid()) == f"pid {os.getpid()} ({name})"


def test_process_whose_name_is_unknown_is_a_number() -> None:
    assert process_text(2**31 - 1) == f"pid {2**31 - 1}"


def test_process_of_another_pid_namespace_is_no_pid_0() -> None:
    assert process_text(0) == "a process of another PID namespace"
