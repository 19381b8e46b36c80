# SPDX-License-Identifier: Apache-2.0
"""Commands in the documents that print arguments have a shell that takes them."""

import re

import pytest

from tests.unit.tools.test_links import DOCUMENTS, ROOT

PRINTED = re.compile(r"\$\(vhostpci-host qemu-args ")
EVALUATED = re.compile(r'^eval "[^"]*"$', re.M)


def not_evaluated(text: str) -> list[str]:
    """Return the blocks where a shell would give a program the quotes as they are.

    What qemu-args prints has a backslash at the end of each line but the last.
    """
    blocks: list[str] = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.M | re.S)
    return [one for one in blocks if PRINTED.search(EVALUATED.sub("", one))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_printed_arguments_are_evaluated(name: str) -> None:
    assert not_evaluated((ROOT / name).read_text()) == []


def test_block_without_eval_is_found() -> None:
    command = "qemu-system-x86_64 \\\n    $(vhostpci-host qemu-args net0 --role master)"
    assert not_evaluated(f'```\neval "{command}"\n```\n') == []
    assert len(not_evaluated(f"```\n{command}\n```\n")) == 1
