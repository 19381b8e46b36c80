# SPDX-License-Identifier: Apache-2.0
"""The messages of vhost-user: each payload's size and bounds, and arbitrary bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared import vhost_user as vu
from vhostpci_shared import virtio
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

REGION = vu.MemRegion(0x1000, 0x2000, 0x7F0000000000, 0x4000)

EXAMPLES: list[tuple[vu.Payload, int]] = [
    (vu.Empty(), 0),
    (vu.U64(2**64 - 1), 8),
    (vu.VringState(2**32 - 1, 7), 8),
    (vu.VringFd(255, nofd=True), 8),
    (vu.VringAddr(1, 1, 2, 3, 4, 5), 40),
    (REGION, 32),
    (vu.MemTable((REGION, REGION)), 72),
    (vu.SingleRegion(REGION), 40),
    (vu.Log(1, 2), 16),
]
PAYLOADS = sorted({type(example) for example, _ in EXAMPLES}, key=lambda t: t.__name__)


@pytest.mark.parametrize(("payload", "size"), EXAMPLES)
def test_payload_has_the_size_of_the_specification(
    payload: vu.Payload, size: int
) -> None:
    assert len(bytes(payload)) == size
    assert type(payload).parse(bytes(payload)) == payload


@pytest.mark.parametrize("kind", PAYLOADS)
@given(data=st.binary(max_size=80) | st.sampled_from([bytes(p) for p, _ in EXAMPLES]))
def test_any_bytes_are_parsed_or_refused(kind: type[vu.Payload], data: bytes) -> None:
    try:
        payload = kind.parse(data)
    except ProtocolError:
        return
    assert kind.parse(bytes(payload)) == payload


WORDS = st.integers(0, 2**32 - 1)
# Random bytes alone hardly ever have the version, and a size near the largest one.
HEADERS = st.tuples(
    st.integers(0, 50) | WORDS,
    st.sampled_from([vu.VERSION, vu.VERSION | 4, vu.VERSION | 8]) | WORDS,
    st.integers(vu.MAX_PAYLOAD - 2, vu.MAX_PAYLOAD + 2) | st.integers(0, 5000),
).map(lambda words: struct.pack("=III", *words))


@given(HEADERS | st.binary(max_size=16))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        header = vu.Header.parse(data)
    except ProtocolError:
        return
    assert bytes(header) == data
    assert header.size <= vu.MAX_PAYLOAD
    assert header.name


def test_header_of_another_version_is_refused() -> None:
    for version in (0, 2, 3):
        with pytest.raises(ProtocolError, match="version"):
            vu.Header.parse(bytes(vu.Header(1, version, 0)))


def test_payload_of_more_than_4096_bytes_is_refused_before_it_is_read() -> None:
    header = vu.Header(5, vu.VERSION, 4096)
    assert vu.Header.parse(bytes(header)) == header
    with pytest.raises(ProtocolError, match="4097 bytes of payload, more than 4096"):
        vu.Header.parse(bytes(vu.Header(5, vu.VERSION, 4097)))


def test_request_without_payload_takes_no_byte() -> None:
    with pytest.raises(ProtocolError, match="1 bytes where none"):
        vu.Empty.parse(b"\0")


@pytest.mark.parametrize("field", ["guest_addr", "user_addr", "mmap_offset"])
def test_region_that_wraps_is_refused(field: str) -> None:
    values = {"guest_addr": 0, "user_addr": 0, "mmap_offset": 0, "size": 0x2000}
    assert vu.MemRegion.parse(bytes(vu.MemRegion(**(values | {field: 2**64 - 0x2000}))))
    wrapping = vu.MemRegion(**(values | {field: 2**64 - 0x1FFF}))
    with pytest.raises(ProtocolError, match="wraps"):
        vu.MemRegion.parse(bytes(wrapping))


def test_empty_region_is_refused() -> None:
    with pytest.raises(ProtocolError, match="empty"):
        vu.MemRegion.parse(bytes(vu.MemRegion(0, 0, 0, 0)))


def test_log_may_end_at_the_last_address_and_not_beyond() -> None:
    last = vu.Log(2**64 - 2, 2)
    assert vu.Log.parse(bytes(last)) == last
    with pytest.raises(ProtocolError, match="wraps"):
        vu.Log.parse(bytes(vu.Log(2**64 - 1, 2)))


def test_empty_log_is_refused() -> None:
    with pytest.raises(ProtocolError, match="empty"):
        vu.Log.parse(bytes(vu.Log(0, 0)))


def test_table_has_at_most_eight_regions() -> None:
    table = vu.MemTable((REGION,) * 8)
    assert vu.MemTable.parse(bytes(table)) == table
    with pytest.raises(ProtocolError, match="at most 8"):
        vu.MemTable.parse(bytes(vu.MemTable((REGION,) * 9)))


def test_table_that_counts_more_than_it_has_is_refused() -> None:
    data = bytearray(bytes(vu.MemTable((REGION,))))
    data[0] = 2
    with pytest.raises(ProtocolError, match="memory table of 2 regions in 40 bytes"):
        vu.MemTable.parse(bytes(data))


@pytest.mark.parametrize("extra", [1, 31])
def test_table_that_ends_within_a_region_is_refused(extra: int) -> None:
    data = bytes(vu.MemTable((REGION,))) + bytes(extra)
    with pytest.raises(ProtocolError, match="memory table of 1 regions"):
        vu.MemTable.parse(data)


def test_single_region_without_its_padding_is_refused() -> None:
    with pytest.raises(ProtocolError, match="24 bytes where 32 are needed"):
        vu.SingleRegion.parse(bytes(REGION))


def test_table_may_have_unused_entries_as_user_mode_linux_sends_it() -> None:
    table = vu.MemTable((REGION,))
    assert vu.MemTable.parse(bytes(table) + bytes(32)) == table


@pytest.mark.parametrize("value", [0x200, 0x10000, 0xFFFFFFFF, 1 << 63])
def test_notifier_index_beyond_eight_bits_is_refused_and_not_cut(value: int) -> None:
    with pytest.raises(ProtocolError, match="unknown bits"):
        vu.VringFd.parse(bytes(vu.U64(value)))


DESCRIPTORS = {
    Request.SET_MEM_TABLE: range(9),
    Request.SET_LOG_BASE: range(2),
    Request.SET_LOG_FD: range(1, 2),
    Request.SET_VRING_KICK: range(2),
    Request.SET_VRING_CALL: range(2),
    Request.SET_VRING_ERR: range(2),
    Request.SET_BACKEND_REQ_FD: range(1, 2),
    Request.ADD_MEM_REG: range(1, 2),
    Request.REM_MEM_REG: range(2),
}
"""How many descriptors the specification lets each request have; the others: none."""


@pytest.mark.parametrize("request_", vu.SHAPES)
def test_request_takes_as_many_descriptors_as_the_specification_says(
    request_: Request,
) -> None:
    allowed = DESCRIPTORS.get(request_, range(1))
    for count in range(10):
        if count in allowed:
            vu.SHAPES[request_].check_fds(range(count))
            continue
        with pytest.raises(ProtocolError, match=f"{count} descriptors"):
            vu.SHAPES[request_].check_fds(range(count))


def test_requests_with_a_reply_are_those_of_the_specification() -> None:
    assert {
        Request.GET_FEATURES,
        Request.GET_VRING_BASE,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.GET_INFLIGHT_FD,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
    } == vu.REPLIES


def test_reply_has_the_flags_that_qemu_insists_on() -> None:
    data = vu.reply(Request.GET_FEATURES, vu.U64(1))
    header = vu.Header.parse(data[:12])
    assert header == vu.Header(Request.GET_FEATURES, 0x5, 8)
    assert not header.need_reply


def test_features_have_the_names_of_the_specification() -> None:
    names = virtio.names(Feature.NET_F_MRG_RXBUF | Feature.F_VERSION_1 | 1 << 4)
    assert names == ["bit 4", "NET_F_MRG_RXBUF", "F_VERSION_1"]


@pytest.mark.parametrize("num", [0, 3, 6, 257, 65536, 2**32 - 1])
def test_ring_size_that_is_no_power_of_two_to_32768_is_refused(num: int) -> None:
    with pytest.raises(ProtocolError, match="ring size"):
        virtio.check_split_size(num)


@pytest.mark.parametrize("num", [1, 256, 32768])
def test_ring_size_may_be_a_power_of_two(num: int) -> None:
    assert virtio.check_split_size(num) == num
