# SPDX-License-Identifier: Apache-2.0
"""A thread that is started quietly leaves all signals to the main thread."""

import signal
import threading

from vhostpci_shared import quiet_thread


def test_thread_blocks_all_signals_but_those_of_its_own_faults() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    blocked: set[int] = set()
    thread = threading.Thread(
        target=lambda: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    )
    quiet_thread.start(thread)
    thread.join()
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD} < blocked
    faults = {signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL}
    assert not faults & blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
