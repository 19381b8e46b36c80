# SPDX-License-Identifier: Apache-2.0
"""Reading a QEMU's command line, which any user can write as he likes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.doctor.command_line import CommandLine, is_on


def parse(*words: str) -> CommandLine:
    return CommandLine.parse("\0".join(["qemu", *words, ""]))


def test_the_first_word_has_a_name_of_its_option() -> None:
    (found,) = parse("-device", "ivshmem-doorbell,vectors=3").all("device")
    assert found == {"driver": "ivshmem-doorbell", "vectors": "3"}


def test_two_commas_are_one_of_a_value() -> None:
    line = parse("-chardev", "socket,id=a,path=/a,,b,,,server")
    (found,) = line.sockets("/a,b,")
    assert is_on(found, "server")


def test_json_is_read_as_libvirt_writes_it() -> None:
    line = parse("-object", '{"qom-type":"memory-backend-file","share":true,"size":7}')
    (found,) = line.all("object")
    assert (found["share"], found["size"]) == ("on", "7")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 << 20),
        ("4G", 4 << 30),
        ("size=1048576k", 1 << 30),
        ("1G,slots=2,maxmem=4G", 1 << 30),
        ("much", None),
    ],
)
def test_memory_has_units(text: str, size: int | None) -> None:
    assert parse("-m", text).memory == size


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    line = CommandLine.parse(text)
    assert all(one["driver"] == "x" for one in line.devices("x"))
    assert line.memory is None or line.memory >= 0
