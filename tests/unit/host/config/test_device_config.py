# SPDX-License-Identifier: Apache-2.0
"""What a user may configure, and the errors for everything else."""

import argparse
import grp
from dataclasses import replace
from pathlib import Path

import pytest

from vhostpci_host.config import options
from vhostpci_host.config.device import (
    MAX_SUN_PATH,
    MIB,
    RUN_DIR,
    ConfigError,
    DeviceConfig,
    Mode,
    check_name,
    conflicts,
    group_id,
    parse_carrier_grace,
    parse_confined,
    parse_domain,
    parse_mode,
    parse_queue_pairs,
    parse_size,
    window_size,
)
from vhostpci_host.errors import HostError

GIB = 2**30


@pytest.mark.parametrize("name", ["a", "web-1", "A.b_c", "9", "x" * 64])
def test_name_may_be_letters_digits_and_some_signs(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "x" * 65, "a,b"]
)
def test_name_that_could_be_a_path_or_an_option_is_refused(name: str) -> None:
    with pytest.raises(HostError, match=r"name .*: use 1 to 64 letters"):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1M", 2**20),
        ("512m", 2**29),
        ("4G", 2**32),
        ("4GiB", 2**32),
        ("1048576", 2**20),
    ],
)
def test_size_has_a_suffix_or_none(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0M", "1", "1K", "1000000", "-1G", "1.5G", "G", "1X", "17T", "٣M"]
)
def test_size_that_no_vm_can_have_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="memory "):
        parse_size(text)


@pytest.mark.parametrize(
    ("memory", "window"),
    [(2**20, 2**21), (GIB, 2 * GIB), (GIB - 2**20, GIB), (3 * GIB, 4 * GIB)],
)
def test_window_is_the_power_of_two_with_room_for_the_metadata(
    memory: int, window: int
) -> None:
    assert window_size(memory) == window


@pytest.mark.parametrize(("text", "size"), [("16M", 16), ("64M", 64), ("256M", 256)])
def test_bounce_pool_is_a_power_of_two(text: str, size: int) -> None:
    assert parse_confined(text) == size * MIB


@pytest.mark.parametrize("text", ["", "8M", "80M", "512M", "1G", "x", "0", "yes"])
def test_size_that_no_bounce_pool_can_have_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="confined "):
        parse_confined(text)


def test_confined_without_a_size_has_a_pool_of_64_megabytes() -> None:
    parser = argparse.ArgumentParser()
    options.add_to(parser, options.CONFINED, options.MEMORY)
    words = ["--confined", "--memory", "1G"]
    given = options.texts(parser.parse_args(words))
    assert options.device("a", given).confined == 64 * MIB


def test_slave_of_a_confined_device_has_the_shared_region_only() -> None:
    config = DeviceConfig(name="a", memory=GIB, confined=64 * MIB)
    assert (config.shared, window_size(config.shared)) == (80 * MIB, 128 * MIB)
    assert DeviceConfig(name="a", memory=GIB).shared == GIB


def test_shared_region_of_attach_mode_can_be_a_bar() -> None:
    config = DeviceConfig(name="a", mode=Mode.ATTACH, confined=64 * MIB)
    assert config.shared == 128 * MIB


def test_confined_device_with_less_memory_than_it_shares_is_refused() -> None:
    with pytest.raises(ConfigError, match="80M of it are shared: give it more"):
        DeviceConfig(name="a", memory=80 * MIB, confined=64 * MIB)


def test_confined_device_with_several_queue_pairs_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave out queue-pairs"):
        DeviceConfig(name="a", memory=GIB, confined=64 * MIB, queue_pairs=2)


@pytest.mark.parametrize("text", ["0", "33", "-1", "x", "", "²", "1.0"])
def test_impossible_number_of_queue_pairs_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="queue-pairs"):
        parse_queue_pairs(text)


def test_queue_pairs_may_be_as_many_as_the_metadata_has_room_for() -> None:
    assert parse_queue_pairs("32") == 32


@pytest.mark.parametrize(("text", "mode"), [("660", 0o660), ("0600", 0o600)])
def test_mode_is_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "rw", "0777", "8", "01660", "-660", "0o660"])
def test_text_that_is_no_file_mode_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="socket-mode"):
        parse_mode(text)


def test_group_is_found_by_its_name() -> None:
    assert group_id(grp.getgrgid(0).gr_name) == 0
    with pytest.raises(HostError, match="groupadd no-such-group"):
        group_id("no-such-group")


def test_socket_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(HostError, match="more than 107: use a shorter name"):
        DeviceConfig(name="a", memory=2**20, run_dir=Path("/" + "d" * 100))


def test_socket_path_may_have_107_bytes_and_not_108() -> None:
    def config(size: int) -> DeviceConfig:
        path = Path("/" + "s" * (size - 1))
        return DeviceConfig(name="a", memory=2**20, socket_path=path)

    assert config(107).vhost_user.name == "s" * 106
    with pytest.raises(ConfigError, match="has 108 bytes, more than 107"):
        config(108)


def test_window_socket_path_that_is_too_long_is_refused_too() -> None:
    run_dir = Path("/" + "d" * (MAX_SUN_PATH - len("//a.vhost-user")))
    with pytest.raises(HostError) as refusal:
        DeviceConfig(name="a", mode=Mode.ATTACH, run_dir=run_dir)
    assert "the window's socket" in str(refusal.value)
    assert "a.vhost-user" not in str(refusal.value)


def test_all_contradictions_are_reported_together() -> None:
    with pytest.raises(ConfigError) as refusal:
        DeviceConfig(
            name="a", slave_qmp=Path("/x"), slave_libvirt="vm", run_dir=Path("/r")
        )
    assert [one.option for one in refusal.value.problems] == ["memory", "slave-qmp"]


def test_attach_mode_has_no_memory_of_its_own() -> None:
    DeviceConfig(name="a", mode=Mode.ATTACH)
    with pytest.raises(ConfigError, match="leave it out"):
        DeviceConfig(name="a", mode=Mode.ATTACH, memory=MIB)


@pytest.mark.parametrize("text", ["", "-shutdown", "a/b"])
def test_domain_that_could_be_an_option_is_refused(text: str) -> None:
    with pytest.raises(HostError, match=r"slave-libvirt .*: write a domain's name"):
        parse_domain(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("3600", 3600), ("03", 3), ("off", None)]
)
def test_carrier_grace_is_in_seconds_or_off(text: str, seconds: int | None) -> None:
    assert parse_carrier_grace(text) == seconds


@pytest.mark.parametrize("text", ["0", "3601", "-1", "1.5", "1s", "Off", "no", "", "²"])
def test_other_carrier_grace_is_refused(text: str) -> None:
    with pytest.raises(HostError, match=r"carrier-grace .*: write seconds from 1 to"):
        parse_carrier_grace(text)


def test_two_devices_share_no_file() -> None:
    one = DeviceConfig(name="a", memory=MIB)
    assert not [*conflicts([one, replace(one, name="b")])]
    stolen = replace(one, name="b", socket_path=RUN_DIR / "x" / ".." / "a.control")
    ((device, other, text),) = conflicts([one, stolen])
    assert (device, other) == (stolen, one)
    assert "a.control is the control socket of a too" in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"socket_path": RUN_DIR / "a.ivshmem"},
            "a.ivshmem is both its vhost-user socket and its ivshmem socket",
        ),
        (
            {"socket_path": RUN_DIR / "x" / ".." / "a.control"},
            "a.control is both its vhost-user socket and its control socket",
        ),
        (
            {"socket_path": Path("/m/a"), "memory_dir": Path("/m")},
            "/m/a is both its vhost-user socket and its memory",
        ),
        (
            {"slave_qmp": RUN_DIR / "a.vhost-user"},
            "a.vhost-user is both its vhost-user socket and its slave VM's QMP socket",
        ),
        (
            {"socket_path": RUN_DIR / "x" / ".." / "b.ivshmem.300"},
            "b.ivshmem.300: in /run/vhostpci that is the name of a window's socket",
        ),
        (
            {"connect": RUN_DIR / "b.ivshmem.300"},
            "^a: connect /run/vhostpci/b.ivshmem.300: in .* name of a window's socket",
        ),
    ],
    ids=["ivshmem", "control", "memory", "QMP", "window", "connect"],
)
def test_device_that_names_one_path_for_two_things_is_refused(
    fields: dict[str, Path], said: str
) -> None:
    good = DeviceConfig(name="a", memory=MIB)
    with pytest.raises(ConfigError, match=f"{said}: choose another"):
        replace(good, **fields)  # type: ignore[arg-type]


def test_device_listens_for_its_front_end_or_connects_to_it() -> None:
    path = Path("/run/front-end")
    assert DeviceConfig(name="a", memory=MIB, connect=path).vhost_user == path
    with pytest.raises(ConfigError, match="connect and socket-path exclude") as refusal:
        DeviceConfig(name="a", memory=MIB, connect=path, socket_path=path)
    assert [one.option for one in refusal.value.problems] == ["connect"]


def test_option_whose_path_is_too_long_is_named() -> None:
    with pytest.raises(ConfigError, match="more than 107") as refusal:
        DeviceConfig(name="a", memory=MIB, connect=Path("/" + "s" * 107))
    assert [one.option for one in refusal.value.problems] == ["connect"]


def test_socket_path_like_a_windows_may_be_in_another_directory() -> None:
    path = RUN_DIR / "x" / "b.ivshmem.300"
    assert DeviceConfig(name="a", memory=MIB, socket_path=path).vhost_user == path


def test_no_device_takes_the_daemons_control_socket() -> None:
    device = DeviceConfig(name="control", memory=MIB, memory_dir=RUN_DIR)
    ((_, other, text),) = conflicts([device])
    assert other is None
    assert "the daemon's control socket" in text


def test_rings_and_vectors_follow_from_the_queue_pairs() -> None:
    device = DeviceConfig(name="a", memory=2**20, queue_pairs=4)
    assert (device.rings, device.vectors) == (8, 9)
