# SPDX-License-Identifier: Apache-2.0
"""The option `features`: data planes by name, single features, or both."""

import re
from functools import reduce
from operator import or_
from pathlib import Path

import pytest

from vhostpci_host.config import options
from vhostpci_host.config.device import ConfigError, DeviceConfig, Mode, describe
from vhostpci_host.config.features import ALWAYS, PROFILES, parse_features
from vhostpci_host.config.file import load
from vhostpci_host.errors import HostError
from vhostpci_host.features import OFFERED
from vhostpci_shared.virtio import Feature

DOCUMENT = Path(__file__).parents[4] / "docs/data-planes.md"
OFFLOADS = (
    Feature.NET_F_CSUM
    | Feature.NET_F_GUEST_CSUM
    | Feature.NET_F_HOST_TSO4
    | Feature.NET_F_HOST_TSO6
    | Feature.NET_F_HOST_ECN
    | Feature.NET_F_GUEST_TSO4
    | Feature.NET_F_GUEST_TSO6
    | Feature.NET_F_GUEST_ECN
    | Feature.NET_F_HOST_USO
    | Feature.NET_F_GUEST_USO4
    | Feature.NET_F_GUEST_USO6
)


def test_ring_serves_all_that_we_offer() -> None:
    assert parse_features("ring") == OFFERED


@pytest.mark.parametrize("name", PROFILES)
def test_each_data_plane_is_part_of_what_we_offer(name: str) -> None:
    assert PROFILES[name] & ~OFFERED == 0
    assert ALWAYS in parse_features(name)


@pytest.mark.parametrize("name", ["dpdk", "vpp", "passt"])
def test_data_plane_that_forwards_has_no_offloads_unless_it_is_asked_for(
    name: str,
) -> None:
    assert not parse_features(name) & OFFLOADS
    asked = parse_features(f"{name}, NET_F_CSUM,net_f_host_tso4")
    assert asked & OFFLOADS == Feature.NET_F_CSUM | Feature.NET_F_HOST_TSO4
    assert asked & ~OFFLOADS == parse_features(name)


@pytest.mark.parametrize("name", ["dpdk", "passt"])
def test_document_has_the_features_of_each_data_plane(name: str) -> None:
    (row,) = re.findall(
        rf"^\| `{name}` \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE
    )
    named = [Feature[word] for word in row.split(", ")]
    assert PROFILES[name] == reduce(or_, named)


def test_single_features_have_the_names_that_status_prints() -> None:
    found = parse_features("NET_F_MRG_RXBUF,F_EVENT_IDX")
    assert found == ALWAYS | Feature.NET_F_MRG_RXBUF | Feature.F_EVENT_IDX


@pytest.mark.parametrize("text", ["", "dpdk,", "no", "NET_F_MRG", "1", "ring dpdk"])
def test_word_that_is_neither_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(HostError, match=r"features .*: write ring, vhost-net, dpdk"):
        parse_features(text)


def test_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    with pytest.raises(HostError, match=r"do you mean NET_F_MRG_RXBUF\?"):
        parse_features("NET_F_MRG_RXBUFS")


def test_feature_that_we_do_not_offer_is_not_left_out_silently() -> None:
    with pytest.raises(HostError, match=r"'NET_F_RSS': we do not offer it"):
        parse_features("dpdk,NET_F_RSS")


def test_several_queue_pairs_need_multiqueue() -> None:
    with pytest.raises(ConfigError, match="features without NET_F_MQ") as error:
        options.device("a", {"memory": "1M", "queue-pairs": "2", "features": "passt"})
    assert [one.option for one in error.value.problems] == ["features"]
    options.device("a", {"memory": "1M", "queue-pairs": "2", "features": "dpdk"})


def test_option_at_the_top_of_a_file_is_for_all_its_devices(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        'features = "dpdk"\n[device.a]\nmode = "attach"\n'
        '[device.b]\nmode = "attach"\nfeatures = "ring"\n'
    )
    one, two = load(path).devices
    assert (one.features, two.features) == (parse_features("dpdk"), OFFERED)


def test_device_with_other_features_is_another_configuration() -> None:
    """A daemon that reads its file again then replaces it."""
    texts = [
        describe(DeviceConfig(name="a", mode=Mode.ATTACH, features=features))
        for features in (None, OFFERED, parse_features("dpdk"))
    ]
    assert len(set(texts)) == 3
