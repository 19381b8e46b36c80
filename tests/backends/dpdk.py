# SPDX-License-Identifier: Apache-2.0
"""testpmd of any suite of Debian's, with the cards that it is given.

As a back-end it has `net_vhost`.  It answers ping by itself (`icmpecho`), or forwards
all packets between its two cards (`io`).
"""

import os
from pathlib import Path

from tests.frontends.testpmd import NO_HUGE, Pmd
from tests.vm.harness import DIE_WITH_US
from tests.vm.programs import LIBRARIES, Unpacked, unpacked

DRIVERS = ("bus_vdev", "mempool_ring", "net_tap", "net_vhost", "net_virtio")
PROGRAM = "usr/bin/dpdk-testpmd"


def of_suite(suite: str) -> tuple[str, ...]:
    """Return the words that run the testpmd of a suite of Debian."""
    files = unpacked(suite, "dpdk-dev")
    return (*files.command(PROGRAM), *drivers(files, *DRIVERS))


def vhost(socket: Path, *, client: bool, pairs: int = 1, options: str = "") -> str:
    """Return a back-end's card, whose socket it connects to, or listens at."""
    return (
        f"net_vhost0,iface={socket},queues={pairs},client={int(client)},"
        f"legacy-ol-flags=1{options}"
    )


class BackEnd(Pmd):
    """A testpmd.

    Args:
        program: the words that run it.
        directory: where its files and its log go; it is made if need be.
        cards: what it has.
        forward: what it does with packets.
        prefix: words before its command, as those of a network namespace.
    """

    def __init__(
        self,
        program: tuple[str, ...],
        directory: Path,
        *cards: str,
        forward: str = "icmpecho",
        pairs: int = 1,
        prefix: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(exist_ok=True)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        argv = [
            *(*prefix, *DIE_WITH_US, "stdbuf", "-oL"),
            *(*program, *NO_HUGE),
            *("--lcores", f"0@({cores}),1@({cores})", "--no-pci", "--no-telemetry"),
            *(word for card in cards for word in ("--vdev", card)),
            *("--", "--interactive", "--auto-start", f"--forward-mode={forward}"),
            *("--no-flush-rx", "--total-num-mbufs=4096"),
            *(f"--rxq={pairs}", f"--txq={pairs}"),
        ]
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(directory)}
        super().__init__(argv, directory / "back-end.log", environment)


def drivers(files: Unpacked, *names: str) -> list[str]:
    """Return the options that load these drivers of DPDK's."""
    directory = files.file(f"{LIBRARIES}/dpdk/pmds-*")
    if Path("/", LIBRARIES, "dpdk", directory.name).exists():
        # This machine has the same version, and DPDK loads all drivers that it finds
        # there.  It ends when it loads one a second time.
        return []
    place = f"{LIBRARIES}/dpdk/{directory.name}"
    found = [files.file(f"{place}/librte_{name}.so.*.*") for name in names]
    return [word for file in found for word in ("-d", str(file))]
