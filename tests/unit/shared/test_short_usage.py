# SPDX-License-Identifier: Apache-2.0
"""Errors of the command lines, which are one line each."""

import re
from collections.abc import Callable, Sequence

import pytest

from vhostpci_guest.cli.main import main as guest
from vhostpci_host.cli.main import main as host

Main = Callable[[Sequence[str]], int]


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (host, ["run", "web", "--queue-pairs", "99"], "vhostpci-host run: argument"),
        (host, ["fly"], "vhostpci-host: argument COMMAND: invalid choice: 'fly'"),
        (guest, ["run", "--mtu", "12"], "vhostpci-guest run: argument --mtu: '12' is"),
        (guest, [], "vhostpci-guest: the following arguments are required: COMMAND"),
    ],
)
def test_usage_error_is_one_line_that_names_the_help(
    main: Main, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert re.search(r"--help \[[GHS]\d+\]$", line)
