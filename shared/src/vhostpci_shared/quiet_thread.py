# SPDX-License-Identifier: Apache-2.0
"""Start a thread that takes no signals: they are for the main thread.

A signal for a process goes to any of its threads that does not block it.  So a main
thread that blocks a signal has it wait only if all the other threads block it, too.
"""

import signal
import threading

_FAULTS = {signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL}
"""What the thread itself causes: blocked, these would end the process at once."""


def start(thread: threading.Thread) -> None:
    """Start `thread` with all signals blocked, except those that it causes itself."""
    signals = signal.valid_signals() - _FAULTS
    # Blocked here, as the thread inherits them: it must never run without.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
