# SPDX-License-Identifier: Apache-2.0
"""How packets lie in the master's buffers, which its driver's features decide."""

from dataclasses import dataclass
from enum import IntFlag


class Offload(IntFlag):
    """Work that the TAP may leave to its reader: TUN_F_* of linux/if_tun.h."""

    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08
    USO4 = 0x20
    USO6 = 0x40
    USO = USO4 | USO6  # Linux knows both (from 6.2 on), or none


@dataclass(frozen=True, slots=True, kw_only=True)
class NetOptions:
    """How packets lie in the master's buffers."""

    hdr_len: int
    """Length of the virtio-net header before each packet, in bytes."""
    max_packet: int
    """Longest packet that the master accepts, in bytes, without that header."""
    offloads: Offload
    udp_segments: bool
    """Whether the master may send UDP packets that are to become several."""
    mergeable: bool
    event_idx: bool
    indirect: bool
    in_order: bool
