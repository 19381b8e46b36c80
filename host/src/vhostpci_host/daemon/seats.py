# SPDX-License-Identifier: Apache-2.0
"""When a connection that hangs makes room for another one.

A device has one front-end and one slave.  Each keeps its place as long as it likes,
unless it hangs and another one comes: then the one that hangs is disconnected.
"""

from ..device.agent_view import HANGS, AgentView
from ..ivshmem.connection import SlaveConnection
from ..ivshmem.linger import LINGER

HUNG = 5.0
"""Seconds in which an agent that has just connected says something ten times."""


def slave_hangs(slave: SlaveConnection, agent: AgentView, now: float) -> str:
    """Return how a slave hangs; empty if it does not, or if that cannot be known.

    A slave VM may have no agent for hours, while it boots or is repaired: only whether
    its QEMU reads what it was sent is known.
    """
    # Once it has served, five beats that are missing are enough.
    if slave.is_process and agent.hangs:
        return f"has said nothing for {HANGS:g} s"
    limit = HUNG if slave.is_process else LINGER
    if slave.unread() and now - slave.since >= limit:
        return f"has not read what it was sent {limit:g} s ago"
    if slave.is_process and now - agent.silent_since(slave.since) >= HUNG:
        return f"has said nothing for {HUNG:g} s"
    return ""
