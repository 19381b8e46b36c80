# SPDX-License-Identifier: Apache-2.0
"""What is kept of a conversation, and how it is shown; the front-end is hostile."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.vhost_user import spoken
from vhostpci_host.vhost_user.conversation import (
    KEPT,
    LOGGED,
    LONGEST,
    Conversation,
)
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature


def heard(message: Message) -> str:
    conversation = Conversation("web")
    conversation.heard(message)
    (entry,) = conversation.since(0)["entries"]
    return spoken.text(entry)


REGION = vu.MemRegion(0, 0x1000, 0x7F00, 0x20)


@pytest.mark.parametrize(
    ("request_", "payload", "text"),
    [
        (Request.SET_OWNER, None, "-> SET_OWNER"),
        (
            Request.SET_FEATURES,
            vu.U64(Feature.F_VERSION_1 | Feature.NET_F_MAC),
            "-> SET_FEATURES features=NET_F_MAC F_VERSION_1",
        ),
        (
            Request.SET_VRING_NUM,
            vu.VringState(1, 256),
            "-> SET_VRING_NUM index=1 num=256",
        ),
        (
            Request.SET_VRING_ADDR,
            vu.VringAddr(0, 0, 0x10, 0x20, 0x30),
            "-> SET_VRING_ADDR index=0 flags=0x0 desc=0x10 used=0x20 avail=0x30 "
            "log=0x0",
        ),
        (
            Request.SET_MEM_TABLE,
            vu.MemTable((REGION,)),
            "-> SET_MEM_TABLE region0=(guest_addr=0x0, size=0x1000, "
            "user_addr=0x7f00, mmap_offset=0x20)",
        ),
        (
            Request.SET_VRING_CALL,
            vu.VringFd(1, nofd=True),
            "-> SET_VRING_CALL index=1 nofd=True",
        ),
    ],
)
def test_message_is_shown_by_its_name_and_its_fields(
    request_: Request, payload: vu.Payload | None, text: str
) -> None:
    assert heard(Message.of(request_, payload)) == text


def test_reply_and_the_wish_for_one_are_shown() -> None:
    conversation = Conversation("web")
    flags = vu.HeaderFlag.NEED_REPLY
    conversation.heard(Message.of(Request.SET_OWNER, flags=flags))
    conversation.said(vu.reply(Request.SET_OWNER, vu.U64(0)))
    conversation.said(vu.reply(Request.GET_VRING_BASE, vu.VringState(1, 77)))
    lines = [spoken.text(one) for one in conversation.since(0)["entries"]]
    assert lines == [
        "-> SET_OWNER (wants a reply)",
        "<- SET_OWNER reply value=0",
        "<- GET_VRING_BASE reply index=1 num=77",
    ]


def test_payload_that_does_not_fit_is_counted_and_not_shown() -> None:
    header = vu.Header(Request.SET_VRING_NUM, vu.VERSION, 5)
    line = heard(Message(header, b"\x1b[31m"))
    assert line == "-> SET_VRING_NUM problem=5 bytes that do not fit the request"


def test_request_that_has_no_name_is_shown_by_its_number() -> None:
    assert heard(Message(vu.Header(999, vu.VERSION, 0))) == "-> request 999"


def test_long_payload_is_not_kept() -> None:
    header = vu.Header(Request.SET_MEM_TABLE, vu.VERSION, LONGEST + 1)
    conversation = Conversation("web")
    conversation.heard(Message(header, bytes(LONGEST + 1)))
    (entry,) = conversation.since(0)["entries"]
    assert len(entry["payload"]) == 2 * LONGEST
    assert "too many to be kept" in spoken.text(entry)


def test_only_the_last_messages_are_kept() -> None:
    conversation = Conversation("web")
    for _ in range(KEPT + 7):
        conversation.note("x")
    found = conversation.since(0)
    assert [one["number"] for one in found["entries"]] == list(range(7, KEPT + 7))
    assert found["next"] == KEPT + 7
    assert conversation.since(KEPT + 6)["entries"] == found["entries"][-1:]
    assert conversation.since(KEPT + 7)["entries"] == []


def test_debug_log_has_so_many_messages_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    clock = [100.0]
    conversation = Conversation("web", lambda: clock[0])
    for _ in range(LOGGED + 5):
        conversation.heard(Message.of(Request.SET_OWNER))
    assert len(caplog.messages) == LOGGED
    assert caplog.messages[0] == "web: vhost-user: -> SET_OWNER"
    clock[0] += 1
    conversation.heard(Message.of(Request.SET_OWNER))
    assert caplog.messages[LOGGED] == "web: vhost-user: 5 more messages"


def test_nothing_is_decoded_below_debug_level(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(spoken, "text", lambda _entry: pytest.fail("decoded"))
    Conversation("web").heard(Message.of(Request.SET_OWNER))


def test_time_is_the_users() -> None:
    conversation = Conversation("web")
    conversation.note("x")
    assert abs(conversation.since(0)["entries"][0]["time"] - time.time()) < 60


@given(
    request=st.integers(0, 50) | st.integers(0, 2**32 - 1),
    flags=st.integers(0, 2**30).map(lambda n: n << 2 | vu.VERSION),
    payload=st.binary(max_size=300),
)
def test_any_message_is_one_printable_line(
    request: int, flags: int, payload: bytes
) -> None:
    header = vu.Header(request, flags, len(payload))
    assert heard(Message(header, payload)).isprintable()
