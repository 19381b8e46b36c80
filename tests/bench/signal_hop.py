# SPDX-License-Identifier: Apache-2.0
"""The processes of the part "relay": what stands in for a daemon, and for an agent.

    python -m tests.bench.signal_hop loop SOURCE TARGET...     the daemon, in Python
    python -m tests.bench.signal_hop thread SOURCE TARGET...   the daemon, with its C
    python -m tests.bench.signal_hop receive PIPE EVENTFD...   the agent

The numbers are descriptors that the process inherits.
"""

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

from vhostpci_host.fds import Notifier
from vhostpci_host.ivshmem.relays import LoopRelays, Relays, ThreadRelays
from vhostpci_shared.relay_thread import RelayThread


def add_all(relays: Relays, numbers: Sequence[int]) -> None:
    """Relay each of the even places to the odd one behind it; then say so."""
    # Duplicates, as the same number may come twice.
    notifiers = [Notifier(os.dup(number)) for number in numbers]
    for source, target in zip(notifiers[::2], notifiers[1::2], strict=True):
        relays.add(source, target)
    print("ready", flush=True)


async def run_loop(numbers: Sequence[int]) -> None:
    """Relay in the event loop, as a daemon without the C part does."""
    add_all(LoopRelays(asyncio.get_running_loop()), numbers)
    await asyncio.Event().wait()


def run_thread(numbers: Sequence[int]) -> None:
    """Relay in the C thread."""
    add_all(ThreadRelays(RelayThread), numbers)
    signal.pause()


def receive(pipe: int, numbers: Sequence[int]) -> None:
    """Say of each signal when it came, in ns of the monotonic clock."""
    poll = select.poll()
    for number in numbers:
        poll.register(number, select.POLLIN)
    print("ready", flush=True)
    while True:
        found = poll.poll()
        now = time.monotonic_ns()
        for number, _ in found:
            os.eventfd_read(number)
        os.write(pipe, now.to_bytes(8, "little"))


def main(role: str, *words: str) -> None:
    """Do what the first word says."""
    numbers = [int(word) for word in words]
    if role == "loop":
        asyncio.run(run_loop(numbers))
    elif role == "thread":
        run_thread(numbers)
    else:
        receive(numbers[0], numbers[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
