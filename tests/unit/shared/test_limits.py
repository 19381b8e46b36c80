# SPDX-License-Identifier: Apache-2.0
"""A process takes as many descriptors as it is allowed."""

import resource

from vhostpci_shared.limits import raise_descriptor_limit


def test_limit_of_descriptors_becomes_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
