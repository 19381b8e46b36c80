# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it gives, and each of its mistakes in its line."""

import grp
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.config import file as config_file
from vhostpci_host.config.device import RUN_DIR, Mode
from vhostpci_host.config.file import ConfigFile, FileError
from vhostpci_host.errors import HostError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vms.toml"


def load(file: Path, text: str) -> ConfigFile:
    file.write_text(text)
    return config_file.load(file)


def mistakes(file: Path, text: str) -> list[str]:
    """What is wrong with it: `LINE: text`."""
    with pytest.raises(FileError) as error:
        load(file, text)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    return [line.removeprefix(f"{file}:") for line in lines]


def test_device_has_what_its_table_says(file: Path) -> None:
    (device,) = load(
        file,
        '[device.web]\nmode = "attach"\nqueue-pairs = 4\nslave-qmp = "/q"\n'
        'socket-path = "/s"\nsocket-mode = "0666"\nmemory-dir = "/m"',
    ).devices
    assert (device.name, device.mode, device.queue_pairs) == ("web", Mode.ATTACH, 4)
    assert (device.slave_qmp, device.socket_path) == (Path("/q"), Path("/s"))
    assert (device.access, device.memory_dir) == (0o666, Path("/m"))


def test_memory_may_be_a_text_or_a_number_of_bytes(file: Path) -> None:
    sizes = [
        device.memory
        for device in load(
            file, '[device.a]\nmemory = "1G"\n[device.b]\nmemory = 1073741824'
        ).devices
    ]
    assert sizes == [2**30, 2**30]


def test_top_is_for_all_devices_and_a_table_for_its_own(file: Path) -> None:
    group = grp.getgrgid(0).gr_name
    loaded = load(
        file,
        f'run-dir = "/r"\nmemory-dir = "/m"\nsocket-group = "{group}"\n'
        '[device.a]\nmemory = "1G"\n[device.b]\nmemory = "1G"\nmemory-dir = "/n"\n'
        'socket-mode = "0600"',
    )
    a, b = loaded.devices
    assert a.run_dir == b.run_dir == loaded.run_dir == Path("/r")
    assert (a.memory_dir, b.memory_dir) == (Path("/m"), Path("/n"))
    assert (a.group, a.access, b.access) == (0, 0o660, 0o600)
    assert loaded.shared["memory-dir"] == "/m"


def test_relative_path_is_seen_from_the_file(file: Path) -> None:
    assert load(file, 'run-dir = "run"').run_dir == file.parent / "run"


def test_file_without_devices_is_good(file: Path) -> None:
    assert load(file, "# they come later") == ConfigFile(RUN_DIR, {}, ())


def test_every_mistake_is_told_at_once_in_the_order_of_lines(file: Path) -> None:
    said = mistakes(
        file,
        """\
sokcet-group = "x"
memory = "1G"
[device.a]
queue-pairs = 99
memory = "1G"
memory = "2G"
[device.b]
mode = arena
run-dir = "/x"
[device.c]
mode = "attach"
memory = "1G"
slave-qmp = "/q"
slave-libvirt = "vm"
[device.a]
[device."a/b"]
memory = true
[switch.d]
[device.e.f]
""",
    )
    assert [line.split(": ")[0] for line in said] == [
        *("1", "2", "4", "6", "8", "9", "12", "13", "15", "16", "17", "18", "19")
    ]
    assert said[0] == (
        "1: sokcet-group: there is no such option; do you mean socket-group?"
    )
    assert said[2] == "4: a: queue-pairs '99': write a number from 1 to 32"
    assert said[3].startswith("6: device.a.memory is there twice, first in line 5")


def test_broken_value_is_not_called_missing(file: Path) -> None:
    assert mistakes(file, "[device.a]\nmemory = 1G") == [
        "2: this is no TOML: expected newline or end of document after a statement "
        "(column 11)"
    ]


def test_memory_is_not_judged_where_the_mode_is_wrong(file: Path) -> None:
    assert mistakes(file, '[device.a]\nmode = "dance"') == [
        "2: a: mode 'dance': write arena or attach"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("socket-mode = 660", "socket-mode 660: write a text in quotes"),
        ("queue-pairs = 1.5", "queue-pairs 1.5: write a text in quotes or a number"),
        ("queue-pairs = true", "queue-pairs True: write a text in quotes or a number"),
        ("queue-pairs = -1", "queue-pairs '-1': write a number from 1 to 32"),
        ('socket-path = ""', "socket-path '': write a path"),
        ('socket-group = "no-such-group"', "there is no such group"),
        ('slave-libvirt = "-x"', "write a domain's name"),
        ("memory = [1]", "memory [1]: write a text in quotes or a number"),
        ("socket-path.a = 1", "a device's table has no tables in it"),
    ],
)
def test_value_that_cannot_be_is_told_with_its_key_and_the_mend(
    file: Path, line: str, said: str
) -> None:
    text = f'[device.a]\nmode = "attach"\n{line}'
    if line.startswith("memory"):
        text = f"[device.a]\n\n{line}"
    (told,) = mistakes(file, text)
    assert told.startswith("3: ")
    assert said in told


def test_two_devices_with_one_socket_are_told(file: Path) -> None:
    (said,) = mistakes(
        file,
        '[device.a]\nmemory = "1G"\nsocket-path = "/run/x"\n'
        '[device.b]\nmemory = "1G"\nsocket-path = "/run/../run/x"\n',
    )
    assert said.startswith("6: b: its vhost-user socket ")
    assert "is the vhost-user socket of a too" in said


def test_two_devices_with_one_memory_file_are_told(file: Path) -> None:
    (said,) = mistakes(
        file,
        'run-dir = "/r"\n[device."a.control"]\nmemory = "1G"\nmemory-dir = "/r"\n'
        '[device.a]\nmemory = "1G"\n',
    )
    assert "/r/a.control is the memory of a.control too" in said


def test_devices_that_have_other_mistakes_conflict_all_the_same(file: Path) -> None:
    said = mistakes(
        file, '[device.a]\nsocket-path = "/x"\n[device.b]\nsocket-path = "/x"'
    )
    assert len(said) == 3


WORDS = [
    *("[device.a]", "[device.b]", "[[x]]", "\n", "memory", "mode", "run-dir", "="),
    *('"attach"', '"1G"', "1", '"' * 3, "'" * 3, '"/x"', "[", "]", "{", "}", ".", "\0"),
    *("socket-path", "queue-pairs", "device", ",", "true", "#", "a.b", '"\\ud800"'),
]


@given(st.lists(st.sampled_from(WORDS)).map(" ".join).map(str.encode) | st.binary())
def test_any_file_is_taken_or_each_mistake_has_a_line(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(data)
    try:
        config_file.load(path)
    except FileError as error:
        lines = data.count(b"\n") + 1
        for line in str(error).split(f"{path}:")[1:]:
            assert 1 <= int(line.split(":")[0]) <= lines


def test_file_that_is_no_text_is_told_with_its_line(file: Path) -> None:
    file.write_bytes(b"a = 1\nb = \xff\n")
    with pytest.raises(FileError, match=r":2: byte 0xff is no UTF-8"):
        config_file.load(file)


def test_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(HostError, match=f"cannot read {file}: No such file"):
        config_file.load(file)
