# SPDX-License-Identifier: Apache-2.0
"""The configuration file: its devices, or one line for each of its mistakes."""

import grp
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.config import file as config_file
from vhostpci_host.config.device import RUN_DIR, Mode
from vhostpci_host.config.file import ConfigFile
from vhostpci_host.errors import FileError, HostError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vms.toml"


def load(file: Path, text: str) -> ConfigFile:
    file.write_text(text)
    return config_file.load(file)


def mistakes(file: Path, text: str) -> list[str]:
    """Return what is wrong with the file, without its name and the lines."""
    return [said for _, said in placed_mistakes(file, text)]


def placed_mistakes(file: Path, text: str) -> list[tuple[int | None, str]]:
    """Return what is wrong with the file, with the line of each mistake."""
    with pytest.raises(FileError) as error:
        load(file, text)
    found = []
    for said in str(error.value).splitlines():
        place = re.match(rf"{re.escape(str(file))}(?::(\d+))?: ", said)
        assert place, said
        text, code = said[place.end() :].rsplit(" ", 1)
        assert re.fullmatch(r"\[[HS]\d{3}\]", code), said
        found.append((int(place[1]) if place[1] else None, text))
    return found


def test_device_takes_its_options_from_its_table(file: Path) -> None:
    (device,) = load(
        file,
        '[device.web]\nmode = "attach"\nqueue-pairs = 4\nslave-qmp = "/q"\n'
        'socket-path = "/s"\nsocket-mode = "0666"\nmemory-dir = "/m"',
    ).devices
    assert (device.name, device.mode, device.queue_pairs) == ("web", Mode.ATTACH, 4)
    assert (device.slave_qmp, device.socket_path) == (Path("/q"), Path("/s"))
    assert (device.access, device.memory_dir) == (0o666, Path("/m"))


def test_confined_is_the_size_of_the_bounce_pool(file: Path) -> None:
    table = '[device.a]\nmemory = "2G"\nconfined = {}'
    (device,) = load(file, table.format('"64M"')).devices
    assert device.confined == 64 << 20
    assert mistakes(file, table.format('"65M"')) == [
        "device.a: confined '65M': the bounce pool's size is a power of two, from 16M "
        "to 256M"
    ]


def test_confined_device_with_several_queue_pairs_is_refused(file: Path) -> None:
    table = '[device.a]\nmemory = "2G"\nconfined = "64M"\n'
    (said,) = placed_mistakes(file, table + "queue-pairs = 2")
    assert said == (
        4,
        "device.a: queue-pairs 2 of a confined device: several need the card's control "
        "queue, by which a slave could have the master's QEMU write anywhere in the "
        "master's memory: leave out queue-pairs",
    )


def test_grace_of_the_carrier_is_a_number_at_the_top_or_off(file: Path) -> None:
    table = '[device.{}]\nmode = "attach"\n'
    devices = load(
        file,
        f"carrier-grace = 5\n{table.format('a')}"
        f'{table.format("b")}carrier-grace = "off"',
    ).devices
    assert [device.carrier_grace for device in devices] == [5, None]


def test_memory_may_be_a_text_or_a_number_of_bytes(file: Path) -> None:
    sizes = [
        device.memory
        for device in load(
            file, '[device.a]\nmemory = "1G"\n[device.b]\nmemory = 1073741824'
        ).devices
    ]
    assert sizes == [2**30, 2**30]


def test_yes_or_no_is_a_boolean_or_a_text(file: Path) -> None:
    table = '[device.a]\nmemory = "1G"\nprealloc = '
    for value, expected in {
        "true": True,
        '"yes"': True,
        "false": False,
        '"no"': False,
    }.items():
        (device,) = load(file, table + value).devices
        assert device.prealloc == expected
    assert mistakes(file, table + "1") == ["device.a: prealloc 1: write true or false"]
    assert mistakes(file, table + '"true"') == [
        "device.a: prealloc 'true': write yes or no"
    ]


def test_what_happens_to_the_memory_is_for_arena_mode(file: Path) -> None:
    text = 'mode = "attach"\nprealloc = true\ndiscard-memory = true'
    reason = (
        "is for arena mode: in attach mode the master's memory is its own, so leave "
        "it out"
    )
    assert mistakes(file, f"[device.a]\n{text}") == [
        f"device.a: prealloc {reason}",
        f"device.a: discard-memory {reason}",
    ]


def test_option_at_the_top_is_the_default_for_all_devices(file: Path) -> None:
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


def test_relative_path_starts_at_the_files_directory(file: Path) -> None:
    assert load(file, 'run-dir = "run"').run_dir == file.parent / "run"


def test_file_without_devices_is_valid(file: Path) -> None:
    assert load(file, "# they come later") == ConfigFile(file, RUN_DIR, {}, (), b"")


def test_all_mistakes_are_reported_together_those_at_the_top_first(
    file: Path,
) -> None:
    text = """
        sokcet-group = "x"
        memory = "1G"
        [device.a]
        queue-pairs = 99
        memory = "1X"
        [switch.d]
        [device.b]
        run-dir = "/x"
        [[other]]
    """
    # Then device by device, and within one in the order of the keys.
    places = [2, 3, 7, 10, 5, 6, 9, 8]
    starts = [
        "sokcet-group: there is no such option; do you mean socket-group?",
        "memory is for one device: move it to [device.NAME]",
        "[switch]: there are only tables [device.NAME]",
        "[[other]]: there are only tables [device.NAME]",
        "device.a: queue-pairs '99': write a number",
        "device.a: memory '1X': write a size",
        "device.b: run-dir is for the whole daemon: move it",
        "device.b: memory is missing",
    ]
    found = placed_mistakes(file, text)
    pairs = zip(found, starts, strict=True)
    assert [said[: len(start)] for (_, said), start in pairs] == starts
    assert [line for line, _ in found] == places


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[device.b]\nmode = "attach"\nrun-dir = "/x"',
            [
                "device.b: run-dir is for the whole daemon: move it to the file's top, "
                "before the first table"
            ],
        ),
        (
            '[device.c]\nmode = "attach"\nmemory = "1G"\n'
            'slave-qmp = "/q"\nslave-libvirt = "vm"',
            [
                "device.c: memory is for arena mode: in attach mode the master brings "
                "its own, so leave it out",
                "device.c: slave-qmp and slave-libvirt exclude each other: a domain's "
                "QMP socket is libvirt's, so give the domain alone",
            ],
        ),
        (
            '[device."a/b"]\nmemory = true',
            [
                "device.\"a/b\": name 'a/b': use 1 to 64 letters, digits, '.', '_' and "
                "'-', and start with a letter or digit",
                'device."a/b": memory True: write a text in quotes or a number',
            ],
        ),
        (
            "[device.e.f]",
            [
                "device.e: f: a device's table has no tables in it: remove it",
                "device.e: memory is missing: in arena mode give the master's RAM, "
                "such as 1G",
            ],
        ),
        ("[[device.g]]", ["device.g: write [device.g], with single brackets"]),
    ],
    ids=["run-dir", "contradictions", "name", "table in a table", "double brackets"],
)
def test_mistake_in_a_devices_table_is_reported_with_the_correction(
    file: Path, text: str, said: list[str]
) -> None:
    assert mistakes(file, text) == said


@pytest.mark.parametrize(
    ("text", "said", "place"),
    [
        ("[device.a]\nmemory = 1G", "Expected newline or end", "line 2, column 11"),
        ("a = [\n  1,\n  x,\n]\n", "Invalid value", "line 3, column 3"),
        ("a = 1\nb = 1\na = 2\n", "Cannot overwrite a value", "line 3, column 6"),
        ("[a]\n[b]\n[a]", "Cannot declare ('a',) twice", "line 3, column 3"),
    ],
)
def test_broken_toml_is_reported_with_its_line_and_column(
    file: Path, text: str, said: str, place: str
) -> None:
    (mistake,) = mistakes(file, text)
    assert mistake.startswith(f"this is not TOML: {said}")
    assert place in mistake


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a = {'[' * 5000}", "this is not TOML: too many nested brackets"),
        (f"a = {'9' * 5000}", "this is not TOML: Exceeds the limit"),
        (f"device.a.memory = 0x{'f' * 5000}", "memory (a number of thousands of"),
        (f"device.a.memory = '{'9' * 5000}'", "write a size such as"),
        (f"device.a.queue-pairs = '{'9' * 5000}'", "write a number from 1 to 32"),
        (f"run-dir.{'.'.join('a' * 5000)} = 1", "run-dir {'a': {'a': "),
    ],
)
def test_huge_value_is_a_mistake_like_any_other(
    file: Path, text: str, said: str
) -> None:
    assert said in mistakes(file, text)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("device = 5", "device 5: write a table [device.NAME]"),
        ("device.a = 'x'", "device.a: 'x': write a table [device.a]"),
        ("[[device]]", "device [{}]: write a table [device.NAME]"),
    ],
)
def test_device_that_is_not_a_table_is_a_mistake(
    file: Path, text: str, said: str
) -> None:
    assert mistakes(file, text) == [said]


def test_option_at_the_top_applies_to_a_device_that_stands_before_it(
    file: Path,
) -> None:
    (device,) = load(file, 'device.a.memory = "1G"\nrun-dir = "/r"').devices
    assert device.run_dir == Path("/r")


def test_memory_is_not_checked_if_the_mode_is_wrong(file: Path) -> None:
    assert mistakes(file, '[device.a]\nmode = "dance"') == [
        "device.a: mode 'dance': write arena or attach"
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
def test_impossible_value_is_refused_with_its_key_and_what_to_write(
    file: Path, line: str, said: str
) -> None:
    mode = "arena" if line.startswith("memory") else "attach"
    (mistake,) = mistakes(file, f'[device.a]\nmode = "{mode}"\n{line}')
    assert mistake.startswith(f"device.a: {line.split()[0].split('.')[0]}")
    assert said in mistake


def test_two_devices_with_one_socket_are_a_mistake(file: Path) -> None:
    (said,) = mistakes(
        file,
        '[device.a]\nmemory = "1G"\nsocket-path = "/run/x"\n'
        '[device.b]\nmemory = "1G"\nsocket-path = "/run/../run/x"\n',
    )
    assert said.startswith("device.b: its vhost-user socket ")
    assert "is the vhost-user socket of a too" in said


def test_two_devices_with_one_memory_file_are_a_mistake(file: Path) -> None:
    (said,) = mistakes(
        file,
        'run-dir = "/r"\n[device."a.control"]\nmemory = "1G"\nmemory-dir = "/r"\n'
        '[device.a]\nmemory = "1G"\n',
    )
    assert "/r/a.control is the memory of a.control too" in said


def test_conflict_is_found_between_devices_that_have_other_mistakes(file: Path) -> None:
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
def test_any_bytes_are_accepted_or_each_mistake_has_a_line_with_the_file(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(data)
    try:
        config_file.load(path)
    except FileError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith((f"{path}: ", f"{path}:")) for line in lines)


def test_file_that_is_not_utf_8_is_refused_with_the_line(file: Path) -> None:
    file.write_bytes(b"a = 1\nb = \xff\n")
    with pytest.raises(FileError, match=r": byte 0xff in line 2 is not UTF-8"):
        config_file.load(file)


def test_missing_configuration_file_is_named(file: Path) -> None:
    with pytest.raises(HostError, match=f"cannot read {file}: .*; write it first"):
        config_file.load(file)


def test_size_without_quotes_is_answered_with_the_quotes(file: Path) -> None:
    ((line, said),) = placed_mistakes(file, "[device.a]\nmemory = 1G # much")
    assert (line, said[-len('write memory = "1G"') :]) == (2, 'write memory = "1G"')
    (said,) = mistakes(file, "[device.a]\nprealloc = yes")
    assert said.endswith("write prealloc = true")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(FileError, match="no regular file"):
        config_file.load(fifo)
    with pytest.raises(HostError, match=f"cannot read {tmp_path}: Is a directory"):
        config_file.load(tmp_path)


def test_huge_file_is_not_parsed(file: Path) -> None:
    with file.open("wb") as large:
        large.truncate(100 << 20)
    with pytest.raises(FileError, match="more than 1048576 bytes"):
        config_file.load(file)
