# SPDX-License-Identifier: Apache-2.0
"""The agent's file: what it sets, or one line for each of its mistakes."""

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_guest.config import file as config_file
from vhostpci_guest.config.options import OPTIONS
from vhostpci_guest.config.settings import Settings
from vhostpci_guest.errors import FileError, Unusable
from vhostpci_guest.tap.settings import TapConfig, parse_address

DOCUMENT = Path(__file__).parents[4] / "docs/agent.md"
Patch = pytest.MonkeyPatch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guest.toml"


def load(file: Path, text: str) -> Settings:
    file.write_text(text)
    return config_file.load(file)


def mistakes(file: Path, text: str) -> list[str]:
    """Return what is wrong with the file, each with its line."""
    with pytest.raises(FileError) as error:
        load(file, text)
    return [line.removeprefix(f"{file}:") for line in str(error.value).splitlines()]


def test_device_takes_its_settings_from_its_table_and_the_rest_from_the_top(
    file: Path,
) -> None:
    settings = load(
        file,
        'user = "root"\nmtu = 9000\naddress = "10.1.{n}.1/24"\npoll-us = 5\n'
        '[device.web]\ntap = "web0"\nmac = "02:00:00:00:00:01"\ncpus = "0"\n'
        'address = ["10.0.0.2/24", "fd00::2/64"]\n'
        '[device.db]\nbridge = "br0"\naddress = []\ndata-plane = "vhost-net"\n'
        "mtu = 1500",
    )
    assert settings.user is not None
    assert settings.user.uid == 0
    web = settings.rules.config("05.0", "web", 3)
    assert web == TapConfig(
        name="web0",
        mac="02:00:00:00:00:01",
        mtu=9000,
        addresses=tuple(map(parse_address, ("10.0.0.2/24", "fd00::2/64"))),
    )
    assert settings.rules.config("06.0", "db", 4) == TapConfig(mtu=1500)
    assert settings.rules.of("db").bridge == "br0"
    other = settings.rules.config("07.0", "other", 5)
    assert other == TapConfig(mtu=9000, addresses=(parse_address("10.1.5.1/24"),))
    assert settings.bridges == ["br0"]
    assert settings.plane_of("web").cpus == frozenset((0,))
    assert settings.plane_of("web").poll_us == 5
    assert settings.plane_of("db").data_plane.in_kernel
    assert settings.plane_of("other") is settings.plane


def test_relative_path_starts_at_the_files_directory(file: Path) -> None:
    settings = load(
        file, 'socket = "x"\n[device.a]\ndata-plane = "vhost-user:s/{name},server=off"'
    )
    assert settings.socket == file.parent / "x"
    assert settings.place_of("a").path("a") == file.parent / "s" / "a"
    with pytest.raises(Unusable, match="has no data plane with a socket"):
        settings.place_of("b")


def test_all_mistakes_are_reported_at_once_with_their_lines(file: Path) -> None:
    text = """
        mtuu = 3
        pci-device = "0000:00:05.0"
        socket = "/s"
        bridge = 5
        [device.web]
        tap = "a/b"
        address = ["10.0.0.0/24", "10.0.0.1"]
        user = "x"
        mac = "a=02:00:00:00:00:01"
        [device.db]
        keep-tap = true
        cpus = 4096
        tx-method = "magic"
        [web]
        [device.x]
        mtu = "9000
    """
    (said,) = mistakes(file, text)
    assert said.startswith("17: this is not TOML")
    starts = [
        "2: mtuu: there is no such option; do you mean mtu?",
        "5: bridge 5: write a text in quotes",
        "15: [web]: there are only tables [device.NAME]",
        "4: pci-device and socket exclude each other",
        "7: device.web: tap 'a/b' is no interface name",
        "8: device.web: address '10.0.0.0/24' is the network's address, and no host's: "
        "write 10.0.0.1/24",
        "9: device.web: user is for the whole agent: move it",
        "10: device.web: mac 'a=02:00:00:00:00:01': in a file write mac = "
        '"02:00:00:00:00:01" in the table [device.a]',
        "12: device.db: keep-tap is for the whole agent",
        "13: device.db: cpus",
        "14: device.db: tx-method 'magic': write one of auto, writev, io_uring",
    ]
    said_all = mistakes(file, text.replace('"9000', "9000"))
    for line, start in zip(said_all, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'bridge = "br0"\naddress = "10.0.0.1/24"',
            ["2: address: not with bridge br0: a TAP in a bridge has no address"],
        ),
        (
            'bridge = "br0"\n[device.a]\naddress = "10.0.0.1/24"',
            ["3: device.a: address: not with bridge br0"],
        ),
        (
            '[device.a]\ndata-plane = "vhost-user:/s"\ntap = "x"\n',
            ["3: device.a: tap: the data plane vhost-user has no TAP; leave this"],
        ),
        (
            '[device.a]\ntap = "x"\n[device.b]\ntap = "x"',
            ["4: device.b: tap x is that of device.a too: give each its own"],
        ),
        (
            'mac = "02:00:00:00:00:01"\n[device.a]\n[device.b]',
            ["3: device.b: mac 02:00:00:00:00:01 is that of device.a too"],
        ),
        ("[device.a]\n[device.a]", ["2: this is not TOML: Cannot declare"]),
        ("[[device]]", ["1: device [{}]: write a table [device.NAME]"]),
        ("[device.a.b]", ["1: device.a: b: a device's table has no tables in it"]),
        ("address = [1]", ["1: address [1]: write a text in quotes, or a list"]),
        ('tap = "a\\nb"', ["1: tap 'a\\nb': leave out what cannot be printed"]),
        ("tap = web0", ["1: this is not TOML: Invalid value"]),
    ],
)
def test_contradiction_and_wrong_form_are_mistakes(
    file: Path, text: str, said: list[str]
) -> None:
    found = mistakes(file, text)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said


def test_what_applies_to_all_devices_needs_not_fit_each(file: Path) -> None:
    """A device that goes to another process has no use for a TAP's MTU."""
    load(file, 'mtu = 9000\n[device.a]\ndata-plane = "vhost-user:/s"')
    load(file, 'tap = "vp{n}"\n[device.a]\n[device.b]')


def test_empty_file_sets_nothing(file: Path) -> None:
    assert load(file, "# nothing") == Settings()


def test_what_is_no_readable_file_is_named(file: Path) -> None:
    with pytest.raises(Unusable, match=f"cannot read {file}: there is no such file"):
        config_file.load(file)
    with pytest.raises(Unusable, match=f"cannot read {file.parent}: Is a directory"):
        config_file.load(file.parent)
    os.mkfifo(file)
    with pytest.raises(FileError, match=f"{file}: this is no regular file"):
        config_file.load(file)


WORDS = [
    *("[device.a]", "[device.b]", "[[x]]", "\n", "tap", "mtu", "socket", "="),
    *('"10.0.0.1/24"', '"vp0"', "1", '"' * 3, "'" * 3, '"/x"', "[", "]", "{", "}"),
    *("address", "data-plane", "device", ",", "true", "#", "a.b", '"\\u0000"', "."),
    *OPTIONS,
]


@given(st.lists(st.sampled_from(WORDS)).map(" ".join).map(str.encode) | st.binary())
def test_any_bytes_are_accepted_or_each_mistake_has_a_line_with_the_file(
    data: bytes,
) -> None:
    try:
        config_file.read(Path("/any.toml"), data)
    except FileError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith(("/any.toml: ", "/any.toml:")) for line in lines)


def test_change_of_what_is_the_agents_needs_a_restart(file: Path) -> None:
    before = load(file, "")
    after = load(file, 'user = "root"\nbind = "vfio"\nkeep-tap = true\nmtu = 900')
    assert before.needs_restart(after) == ["bind", "user"]
    assert before.plane.changes(load(file, "poll-us = 3").plane) == ["poll-us"]


def test_example_of_the_document_is_a_file(file: Path, monkeypatch: Patch) -> None:
    """Its user and its processors need not be there on this machine."""
    text = DOCUMENT.read_text().split("## The agent's file")[1]
    example = text.split("```toml\n")[1].split("```")[0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: pwd.getpwuid(0))
    settings = load(file, example)
    assert set(settings.rules.own) == {"web", "db"}
