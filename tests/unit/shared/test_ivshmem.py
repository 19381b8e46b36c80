# SPDX-License-Identifier: Apache-2.0
"""The ivshmem client: what each message of a server means, and which are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared import ivshmem
from vhostpci_shared.ivshmem import (
    Client,
    Exhausted,
    OwnVector,
    PeerGone,
    PeerVector,
    SharedMemory,
)
from vhostpci_shared.wire import ProtocolError

HANDSHAKE = [(0, False), (7, False), (-1, True)]


def connected() -> Client:
    client = Client()
    for message, fd in HANDSHAKE:
        client.feed(message, fd)
    return client


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_message_is_one_little_endian_number(message: int) -> None:
    assert ivshmem.decode(ivshmem.encode(message)) == message
    assert ivshmem.encode(message) == message.to_bytes(8, "little", signed=True)


@given(st.binary(max_size=16))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        ivshmem.decode(data)
    except ProtocolError:
        assert len(data) != ivshmem.SIZE


def test_handshake_gives_id_and_memory() -> None:
    client = Client()
    events = [client.feed(*message) for message in HANDSHAKE]
    assert events == [None, None, SharedMemory()]
    assert client.connected
    assert client.own_id == 7


@pytest.mark.parametrize("number", [0, 65535])
def test_lowest_and_highest_id_are_taken(number: int) -> None:
    client = Client()
    client.feed(0, False)
    client.feed(number, False)
    assert client.own_id == number


def test_vectors_are_counted_in_the_order_in_which_they_come() -> None:
    client = connected()
    events = [client.feed(peer, True) for peer in (7, 1, 7, 1, 7)]
    assert events == [
        OwnVector(0),
        PeerVector(1, 0),
        OwnVector(1),
        PeerVector(1, 1),
        OwnVector(2),
    ]


def test_vectors_of_a_peer_that_is_gone_are_forgotten() -> None:
    client = connected()
    client.feed(3, True)
    assert client.feed(3, False) == PeerGone(3)
    assert client.feed(3, False) is None


def test_refused_client_learns_that_another_slave_is_connected() -> None:
    with pytest.raises(ProtocolError, match="another slave"):
        Client().feed(ivshmem.REFUSED, False)


def test_refused_client_learns_that_the_server_has_no_descriptors() -> None:
    """It may try again; one whose place is taken waits for another slave to end."""
    with pytest.raises(Exhausted, match="no descriptors left"):
        Client().feed(ivshmem.EXHAUSTED, False)


@pytest.mark.parametrize(
    "messages",
    [
        [(1, False)],
        [(0, True)],
        [(0, False), (65536, False)],
        [(0, False), (-1, True)],
        [(0, False), (7, True)],
        [(0, False), (7, False), (-1, False)],
        [(0, False), (7, False), (3, True)],
        [*HANDSHAKE, (65536, True)],
        [*HANDSHAKE, (-1, True)],
    ],
    ids=str,
)
def test_server_that_breaks_the_protocol_is_refused(
    messages: list[tuple[int, bool]],
) -> None:
    client = Client()
    for message in messages[:-1]:
        client.feed(*message)
    with pytest.raises(ProtocolError):
        client.feed(*messages[-1])


@given(
    st.integers(0, len(HANDSHAKE)),
    st.lists(st.tuples(st.integers(-3, 9) | st.just(65536), st.booleans())),
)
def test_any_messages_mean_something_or_are_refused(
    steps: int, messages: list[tuple[int, bool]]
) -> None:
    """After any part of a good handshake."""
    client = Client()
    try:
        for message in [*HANDSHAKE[:steps], *messages]:
            client.feed(*message)
    except ProtocolError:
        return
    assert not client.connected or client.own_id is not None
