# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark, in the order in which all of them run."""

from tests.bench.parts import (
    bulk,
    confined,
    cost,
    fair,
    latency,
    native,
    planes,
    poll,
    relay,
    ring,
    taken,
    vm,
)

PARTS = {
    part.name: part
    for part in (
        *(ring.PART, bulk.PART, relay.PART, taken.PART),
        *(
            poll.PART,
            latency.PART,
            cost.PART,
            native.PART,
            planes.PART,
            fair.PART,
            vm.PART,
            confined.PART,
        ),
    )
}
