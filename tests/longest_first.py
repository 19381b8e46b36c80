# SPDX-License-Identifier: Apache-2.0
"""What runs in one process, and what starts first, with `pytest -n N --dist loadfile`.

The tests of a file share VMs or a lab, so they run in one process.  What takes longest
starts first: else one process would still run a long file when the others are done.
pytest-xdist itself starts the file with the most tests first, but a test may take a
millisecond or a minute.
"""

import re

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

PER_LAB = (
    "tests/vm/test_kmod.py",
    "tests/vm/test_kmod_traffic.py",
    "tests/vm/test_kmod_window.py",
    "tests/vm/test_qemus.py",
    "tests/process/test_packets.py",
)
"""Files whose tests walk through several labs, which may run side by side.

The first word of a test's parameters names its lab.
"""

SECONDS = {
    "tests/vm/test_confined.py": 100,
    "tests/vm/test_confined_layout.py": 40,
    "tests/vm/test_confined_qemus.py": 35,
    "tests/vm/test_lives.py": 120,
    "tests/vm/test_two_guests.py": 120,
    "tests/vm/test_restarts.py": 95,
    "tests/vm/test_hotplug.py": 100,
    "tests/vm/test_kmod_traffic.py": 90,
    "tests/vm/test_openvswitch.py": 90,
    "tests/vm/test_daemon_ends.py": 80,
    "tests/process/test_soak.py": 140,
    "tests/vm/test_devices_come_and_go.py": 65,
    "tests/vm/test_kmod.py": 60,
    "tests/vm/test_qemus.py": 55,
    "tests/fuzz/test_edges_guided.py": 45,
    "tests/fuzz/test_ring_libfuzzer.py": 40,
    "tests/vm/test_switch.py": 50,
    "tests/vm/test_libvirt.py": 45,
    "tests/frontends/test_dpdk.py": 60,
    "tests/vm/test_vhost_net.py": 120,
    "tests/vm/test_packed_rings.py": 45,
    "tests/backends/test_testpmd.py": 40,
    "tests/backends/test_openvswitch.py": 55,
    "tests/backends/test_passt.py": 30,
    "tests/vm/test_kmod_window.py": 45,
    "tests/vm/test_window_files.py": 50,
    "tests/process/test_packed_rings.py": 45,
    "tests/process/test_life_cycle.py": 45,
    "tests/vm/test_attached_masters.py": 40,
    "tests/vm/test_queue_pairs.py": 40,
    "tests/vm/test_start_orders.py": 35,
    "tests/assumptions/test_hotplug.py": 35,
    "tests/vm/test_vhost_user.py": 75,
    "tests/vm/test_bad_slaves.py": 30,
    "tests/vm/test_standing_still.py": 30,
    "tests/frontends/test_bench.py": 25,
    "tests/assumptions/test_memory_types.py": 20,
    "tests/vm/test_harness.py": 20,
    "tests/vm/test_kmod_odd_slaves.py": 15,
    "tests/vm/test_bad_masters.py": 20,
    "tests/vm/test_kmod_locked_down.py": 15,
}
"""About how long a file takes, or each lab of a file, on two cores without KVM.

A file that is not here is taken for a short one.  Figures that are out of date cost
time and nothing else: `pytest --durations=0` has those of today.
"""


def group(test: str) -> str:
    """Return what a test runs in one process with: its file, or its lab of the file."""
    file, _, name = test.partition("::")
    lab = re.search(r"\[([^]-]+)", name) if file in PER_LAB else None
    return f"{file}[{lab[1]}]" if lab else file


def seconds(group: str) -> float:
    """Return about how long a group takes."""
    return SECONDS.get(group.partition("[")[0], 0)


class LongestFirst(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives a process that is idle the longest of the groups that wait."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        longest = max(self.workqueue, key=seconds)
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)
