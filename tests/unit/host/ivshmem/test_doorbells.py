# SPDX-License-Identifier: Apache-2.0
"""Which eventfd is the vector of which ring, and which kicks need a relay."""

import os
from contextlib import closing

import pytest

from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.ivshmem.doorbells import VectorSet
from vhostpci_shared.wire import ProtocolError


def test_kick_that_is_known_is_the_vector_itself() -> None:
    with Notifier.new() as kick, closing(VectorSet([None, kick])) as vectors:
        assert vectors.notifiers[2].eventfd_id == kick.eventfd_id
        assert (vectors.is_direct(0), vectors.is_direct(1)) == (False, True)
        assert vectors.relay_target(1, kick) is None


def test_one_kick_of_two_rings_is_the_vector_of_the_first() -> None:
    """The slave would learn of one ring only."""
    with Notifier.new() as kick, closing(VectorSet([kick, kick])) as vectors:
        assert vectors.notifiers[1].eventfd_id == kick.eventfd_id
        assert vectors.notifiers[2].eventfd_id != kick.eventfd_id
        assert (vectors.is_direct(0), vectors.is_direct(1)) == (True, False)
        with pytest.raises(ProtocolError, match="ring 1 has the kick of another ring"):
            vectors.relay_target(1, kick)


def test_pipe_is_relayed_to_an_eventfd() -> None:
    """QEMU takes nothing else as a vector."""
    read, write = (Notifier.adopt(Fd(fd)) for fd in os.pipe())
    with read, write, closing(VectorSet([read])) as vectors:
        assert all(vector.is_eventfd for vector in vectors.notifiers)
        assert vectors.relay_target(0, read) is vectors.notifiers[1]
