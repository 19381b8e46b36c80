# SPDX-License-Identifier: Apache-2.0
"""Where the sockets of the data plane vhost-user are."""

from pathlib import Path

import pytest

from vhostpci_guest.dataplane.vhost_user.place import Place, parse_place
from vhostpci_guest.errors import Unusable


@pytest.mark.parametrize(
    ("text", "listens"),
    [("/run/b", True), ("/run/b,server=on", True), ("/run/b,server=off", False)],
)
def test_end_that_listens_is_said_as_for_qemu(text: str, listens: bool) -> None:
    assert parse_place(text) == Place("/run/b", listens)


def test_name_is_that_of_the_device() -> None:
    place = parse_place("/run/b/{name}.sock")
    assert place.path("net0") == Path("/run/b/net0.sock")


def test_path_is_absolute() -> None:
    assert Path(parse_place("b.sock").template).is_absolute()


@pytest.mark.parametrize(
    "text",
    [
        *("", ",server=on", "/run/", "/run/b,server=yes", "/run/{n}", "/run/{name"),
        *("/run/{name}/b", "/run/..", "/run/a\0b"),
    ],
)
def test_what_is_no_path_of_a_socket(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|may|missing|directory"):
        parse_place(text)


@pytest.mark.parametrize("name", ["../etc/x", "/etc/x", "", "a/b"])
def test_name_from_the_hypervisor_leads_nowhere_else(name: str) -> None:
    with pytest.raises(Unusable, match="cannot be a part of the path"):
        parse_place("/run/{name}").path(name)
