# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark, in the order in which all of them run."""

from tests.bench.parts import bulk, native, relay, ring

PARTS = {part.name: part for part in (ring.PART, bulk.PART, relay.PART, native.PART)}
