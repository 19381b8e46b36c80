# SPDX-License-Identifier: Apache-2.0
"""How packets lie in the master's buffers, by the features that its driver took."""

from dataclasses import dataclass
from enum import IntFlag


class Offload(IntFlag):
    """What the TAP may leave to its reader (TUN_F_*)."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08


@dataclass(frozen=True, slots=True, kw_only=True)
class NetOptions:
    """How packets look in the master's buffers.

    `hdr_len` is in bytes, as is `max_packet`: the longest that the master takes,
    without that header.
    """

    hdr_len: int
    max_packet: int
    offloads: Offload
    mergeable: bool
    event_idx: bool
    indirect: bool
