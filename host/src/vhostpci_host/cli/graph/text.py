# SPDX-License-Identifier: Apache-2.0
"""The picture as lines of text: a tree of each slave's devices."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from vhostpci_shared.terminal import Styled, Terminal, wrap

from .topology import BAD, GOOD, WAITS, Link, Vm

_STYLES = {GOOD: "good", WAITS: "warn", BAD: "bad"}


def lines(links: Sequence[Link], terminal: Terminal) -> Iterator[str]:
    """Yield the lines: a slave, and its devices with their masters below it."""
    for slave, group in groupby(links, key=lambda one: one.slave):
        yield terminal.paint(Styled(_vm(slave), "name"))
        devices = list(group)
        for one in devices:
            yield from _device(one, terminal, last=one is devices[-1])


def _vm(vm: Vm) -> str:
    return vm.name if vm.pid is None else f"{vm.name} (pid {vm.pid})"


def _device(one: Link, terminal: Terminal, *, last: bool) -> Iterator[str]:
    fork, line = ("└─ ", "   ") if last else ("├─ ", "│  ")
    if not terminal.unicode:
        fork, line = ("`- ", "   ") if last else ("|- ", "|  ")
    words = [Styled(one.name, "name"), Styled(one.state, _STYLES[one.kind])]
    yield from _branch("  ".join(words), fork, line, terminal, words)
    down, up = ("↓", "↑") if terminal.unicode else ("v", "^")
    rates = f", {down} {one.down}  {up} {one.up}" if one.down else ""
    master = _vm(one.master)
    if one.master.pid is not None:
        master = f"master {master}"
    for text in (f"{master}{rates}", one.agent):
        yield from _branch(text, f"{line}  ", f"{line}  ", terminal)


def _branch(
    text: str,
    first: str,
    others: str,
    terminal: Terminal,
    words: Sequence[str] = (),
) -> Iterator[str]:
    """Yield a text behind the tree's lines; in its colours if it fits one line."""
    width = None if terminal.width is None else terminal.width - len(first)
    parts = wrap(text, width)
    if len(parts) == 1 and words:
        yield first + "  ".join(map(terminal.paint, words))
        return
    for number, part in enumerate(parts):
        yield (others if number else first) + terminal.paint(part)
