# SPDX-License-Identifier: Apache-2.0
"""The data plane vhost-user on the command line: its options, and what is printed."""

import os
from pathlib import Path
from typing import Any

import pytest

from vhostpci_guest.cli.config_orders import ConfigOrders
from vhostpci_guest.cli.main import main
from vhostpci_guest.cli.print_stats import statistics, stats_text
from vhostpci_guest.cli.print_status import link_text
from vhostpci_guest.cli.separation import local_sockets
from vhostpci_guest.config.data_plane import parse_data_plane
from vhostpci_guest.config.settings import make_settings
from vhostpci_guest.dataplane.kinds import RING
from vhostpci_guest.privileges.user import NOBODY, User
from vhostpci_shared.terminal import Terminal

COUNTS = ("packets", "octets", "drops", "kicks", "calls")
LINK: dict[str, Any] = {
    "device": "0000:00:05.0",
    "name": "net0",
    "state": "waiting",
    "message": "no back-end at /run/b",
    "binding": "vfio",
    "interrupts": True,
    "pid": 7,
    "master": True,
    "daemon": "alive",
    "speed": None,
    "windows": [],
    "data_plane": "vhost-user",
    "socket": "/run/b",
    "carrier": False,
    "tap": None,
    "bridge": None,
    "back_end": None,
    "not_counted": [*COUNTS[:4]],
    "rings": [
        {
            **dict.fromkeys(COUNTS, 0),
            "ring": 0,
            "state": "running",
            "index": 5,
            "calls": 3,
            "method": "",
            "method_reason": "",
            "reason": "",
        }
    ],
}


@pytest.mark.parametrize(
    ("back_end", "who"), [(None, "no back-end"), ({"pid": 9}, "back-end pid 9")]
)
def test_socket_and_back_end_are_printed(
    back_end: dict[str, int] | None, who: str
) -> None:
    printed = "\n".join(link_text({**LINK, "back_end": back_end}, Terminal()))
    assert f"socket /run/b, {who}, carrier off" in printed
    assert "TAP" not in printed


def test_what_is_not_counted_is_not_printed() -> None:
    ring = link_text(LINK, Terminal())[-1].split()
    assert ring[2:] == ["running", "5", "-", "-", "-", "-", "-", "3"]
    ring = link_text({**LINK, "not_counted": list(COUNTS)}, Terminal())[-1].split()
    assert ring[2:] == ["running", "5", "-", "-", "-", "-", "-", "-"]


def test_counters_say_which_are_not_counted() -> None:
    text = "\n".join(stats_text(statistics({**LINK, "rings": []}), Terminal()))
    assert "not counted, so 0 here: packets, octets" in text


@pytest.mark.parametrize(
    "option", [("--tap", "x"), ("--bridge", "b"), ("--keep-tap",), ("--cpus", "0")]
)
def test_option_of_a_tap_is_refused(
    option: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["run", "--data-plane", "vhost-user:/run/b", *option]) == 2
    assert f"{option[0]}: the data plane vhost-user has no TAP" in caplog.text


def config_of(data_plane: str) -> ConfigOrders:
    return ConfigOrders(make_settings({"data-plane": parse_data_plane(data_plane)}))


def test_sockets_are_the_agents_users_but_never_nobodys(tmp_path: Path) -> None:
    config = config_of(f"vhost-user:{tmp_path}/sockets/s")
    for user in (User("nobody", NOBODY, NOBODY), User("me", os.getuid(), 0), None):
        sockets = local_sockets(config, user)
        assert sockets is not None
        sockets.listen("net0").close()
        # Made by this process, and not given to nobody.
        assert (tmp_path / "sockets" / "s").stat().st_uid == os.getuid()


def test_ring_has_no_sockets() -> None:
    assert local_sockets(config_of("ring"), None) is None


def test_automatic_choice_is_the_ring_driver_and_says_why() -> None:
    choice = parse_data_plane("auto")
    assert (choice.kind, choice.has_tap) == (RING, True)
    assert "checks each session" in choice.reason
    assert parse_data_plane("ring").reason == ""
