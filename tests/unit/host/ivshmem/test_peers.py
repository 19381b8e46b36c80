# SPDX-License-Identifier: Apache-2.0
"""ivshmem messages: no ID is used twice, no peer leaves twice, each has its vectors."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.ivshmem.peers import Outgoing, Peers, PeersExhausted, refusal
from vhostpci_shared import ivshmem
from vhostpci_shared.ivshmem import (
    Client,
    OwnVector,
    PeerGone,
    PeerVector,
    SharedMemory,
)


@pytest.fixture(scope="module")
def notifiers() -> Iterator[list[Notifier]]:
    made = [Notifier.new() for _ in range(9)]
    yield made
    for notifier in made:
        notifier.close()


def events(client: Client, messages: list[Outgoing]) -> list[ivshmem.Event | None]:
    return [client.feed(m.message, m.fd is not None) for m in messages]


def test_handshake_has_all_vectors_and_the_daemons_doorbell(
    notifiers: list[Notifier],
) -> None:
    with Fd(notifiers[0].dup().detach()) as memory:
        messages = Peers().handshake(memory, notifiers[:3], notifiers[3])
    seen = events(Client(), messages)
    assert seen == [
        *(None, None, SharedMemory(), PeerVector(1, 0)),
        *(OwnVector(0), OwnVector(1), OwnVector(2)),
    ]
    assert [m.fd for m in messages[4:]] == notifiers[:3]


@given(st.lists(st.sampled_from(["introduce", "withdraw", "retire"]), max_size=60))
def test_any_order_of_events_sends_only_messages_that_qemu_survives(
    notifiers: list[Notifier], course: list[str]
) -> None:
    peers, client = Peers(), Client()
    events(client, peers.handshake(notifiers[0], notifiers[:3], notifiers[3]))
    seen: set[int] = set()
    gone: set[int] = set()
    for step in course:
        if step == "introduce":
            sent = events(client, peers.introduce(notifiers[4:6]))
            assert peers.call_peer is not None
            assert peers.call_peer not in seen, "use after free in QEMU"
            seen.add(peers.call_peer)
            assert sent == [PeerVector(peers.call_peer, i) for i in range(2)]
        elif step == "withdraw":
            peers.withdraw()
            assert peers.call_peer is None
        else:
            for event in events(client, peers.retire()):
                assert isinstance(event, PeerGone)
                assert event.peer not in gone, "double free in QEMU"
                gone.add(event.peer)
    assert gone <= seen
    assert peers.call_peer not in gone


def test_lack_of_unused_peer_ids_is_reported(notifiers: list[Notifier]) -> None:
    peers = Peers()
    for number in range(65534):
        messages = peers.introduce(notifiers[:1])
        assert messages[0].message == number + 2
    with pytest.raises(PeersExhausted, match="65534"):
        peers.introduce(notifiers[:1])


def test_second_slave_gets_a_version_that_no_client_accepts() -> None:
    assert [m.message for m in refusal()] == [ivshmem.REFUSED]
    assert all(m.fd is None for m in refusal())
