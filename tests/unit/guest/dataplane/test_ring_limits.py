# SPDX-License-Identifier: Apache-2.0
"""Numbers past the tables of C, which Python never passes: C refuses them itself."""

import errno
from typing import Any

import pytest

from vhostpci_guest._ring import ffi, lib
from vhostpci_guest.dataplane.native import RingIndex

FFI: Any = ffi  # _ring.pyi declares what the agent uses, and no more
WITHOUT_WORKER = FFI.new("char[]", 1 << 12)


@pytest.mark.parametrize("number", [4096, 2**32 - 1])
def test_a_guard_past_the_table_is_refused(number: int) -> None:
    assert lib.guard_lost(number) == -errno.EINVAL
    assert lib.guard_close(number) == -errno.EINVAL


@pytest.mark.parametrize("index", [len(RingIndex), 2**32 - 1])
def test_a_ring_past_the_pair_is_refused(index: int) -> None:
    """The index is checked first, so the worker is only memory full of zeros."""
    worker: Any = FFI.cast("struct worker *", WITHOUT_WORKER)
    # The check that follows the index's refuses this with EBADF.
    conf: Any = FFI.new("struct ring_conf *", {"kick_fd": 999_999})
    status: Any = FFI.new("struct ring_status *")
    assert lib.worker_start_ring(worker, index, conf) == -errno.EINVAL
    assert lib.worker_stop_ring(worker, index, 0) == -errno.EINVAL
    assert lib.worker_read_ring(worker, index, status) == -errno.EINVAL
