# SPDX-License-Identifier: Apache-2.0
"""The picture in Graphviz's language, for `vhostpci-host graph --format dot | dot`."""

from collections.abc import Iterator, Sequence

from vhostpci_shared.terminal import clean

from .topology import BAD, GOOD, WAITS, Link, Vm, vms

_COLORS = {GOOD: "#1a7f37", WAITS: "#9a6700", BAD: "#cf222e"}


def lines(links: Sequence[Link]) -> Iterator[str]:
    yield "digraph vhostpci {"
    yield "  rankdir=LR;"
    yield '  node [shape=box, style=rounded, fontname="sans-serif"];'
    yield '  edge [fontname="sans-serif", fontsize=10];'
    for vm in vms(links):
        yield f"  {vm.key} [label={_quoted(vm.name, vm.note)}{_absent(vm)}];"
    for one in links:
        rates = f"{one.down} / {one.up}" if one.down else ""
        label = _quoted(one.name, one.state, one.agent, rates)
        color = f'color="{_COLORS[one.kind]}", fontcolor="{_COLORS[one.kind]}"'
        ends = f"{one.master.key} -> {one.slave.key}"
        yield f"  {ends} [label={label}, dir=both, {color}];"
    yield "}"


def _absent(vm: Vm) -> str:
    return ', style="rounded,dashed"' if vm.pid is None else ""


def _quoted(*texts: str) -> str:
    """Return texts as one string of several lines."""
    # In such a string only a quote ends it; a backslash begins an escape of labels.
    shown = [clean(one).replace("\\", "\\\\").replace('"', '\\"') for one in texts]
    return '"' + "\\n".join(filter(None, shown)) + '"'
