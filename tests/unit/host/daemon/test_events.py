# SPDX-License-Identifier: Apache-2.0
"""The events between two views of a device, and the document that lists them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.cli.monitor import LOST
from vhostpci_host.daemon.events import EVENTS, NOTHING, View, differences
from vhostpci_host.interfaces import FAILED

DOCUMENT = Path(__file__).parents[4] / "docs" / "events.md"
ROW = re.compile(r"^\| `([a-z-]+)` \| (.*?) ?\| ", re.MULTILINE)
RUNNING = View(
    state="running", master=5, slave=6, agent="ready", running=("rx0", "tx0")
)

PIDS = st.none() | st.integers(0, 3)
VIEWS = st.builds(
    View,
    state=st.sampled_from(["running", "no master", FAILED]),
    confined=st.sampled_from([None, {"shared": 1, "memory": 2, "pool": 1}]),
    reason=st.sampled_from(["", "it broke"]),
    master=PIDS,
    slave=PIDS,
    agent=st.sampled_from(["none", "ready", "waiting"]),
    running=st.lists(st.sampled_from(["rx0", "tx0"]), unique=True).map(tuple),
    carrier_off=st.sampled_from(["", "no agent", "agent hangs"]),
    mismatch=st.sampled_from(["", "CSUM lacks"]),
)


def names(before: View, after: View) -> list[str]:
    return [name for name, _ in differences(before, after)]


def test_everything_that_a_document_says_is_sent_and_the_reverse() -> None:
    rows = dict(ROW.findall(DOCUMENT.read_text()))
    assert rows.pop(LOST) == ""
    assert {
        name: tuple(re.findall(r"`(\w+)`", text)) for name, text in rows.items()
    } == (EVENTS)


def test_device_that_begins_to_run_says_so_in_the_order_of_its_parts() -> None:
    before = View(state="no master")
    assert names(before, RUNNING) == [
        *("slave-connected", "master-connected", "agent", "rings-started", "state")
    ]
    assert names(RUNNING, before) == [
        *("rings-stopped", "master-disconnected", "slave-disconnected"),
        *("agent", "state"),
    ]


def test_another_master_is_one_that_goes_and_one_that_comes() -> None:
    before = View(state="x", master=1)
    after = View(state="x", master=2)
    assert list(differences(before, after)) == [
        ("master-disconnected", {"pid": 1}),
        ("master-connected", {"pid": 2}),
    ]


def test_device_that_fails_says_why() -> None:
    after = View(state=FAILED, reason="no space")
    assert ("device-failed", {"reason": "no space"}) in list(
        differences(RUNNING, after)
    )


@pytest.mark.parametrize("agent", ["waiting", "silent", "none"])
def test_agent_says_what_it_was_before(agent: str) -> None:
    after = View(state="x", agent=agent, message="no back-end")
    before = View(state="x", agent="ready")
    values = {"agent": agent, "before": "ready", "message": "no back-end"}
    assert list(differences(before, after)) == [("agent", values)]


@given(VIEWS, VIEWS)
def test_events_have_the_values_that_are_documented(before: View, after: View) -> None:
    for name, values in differences(before, after):
        assert tuple(values) == EVENTS[name]


@given(VIEWS)
def test_nothing_happens_where_nothing_changes(view: View) -> None:
    assert names(view, view) == []
    assert tuple(NOTHING.values()) == EVENTS["present"]
