# SPDX-License-Identifier: Apache-2.0
"""What `doctor` prints for people: a line for what is fine, more for what is not."""

from collections import Counter
from collections.abc import Iterator, Sequence

from .findings import Finding, Level
from .terminal import Styled, Terminal

_STYLES = {
    Level.OK: "good",
    Level.WARN: "warn",
    Level.ERROR: "bad",
    Level.SKIPPED: "dim",
}
_WIDTH = len(Level.ERROR)
"""The longest word of the first column."""


def lines(findings: Sequence[Finding], terminal: Terminal) -> Iterator[str]:
    """Yield the lines that say what was found."""
    for finding in findings:
        if finding.level is not Level.SKIPPED:
            yield from _finding(finding, terminal)
    yield from _not_looked_at(findings, terminal)
    yield ""
    yield from terminal.wrapped(_sum(findings))


def _finding(finding: Finding, terminal: Terminal) -> Iterator[str]:
    level, about = finding.level, f"{finding.about}: " if finding.about else ""
    word = Styled(level.value.ljust(_WIDTH), _STYLES[level])
    text = f"{finding.check}: {about}{finding.found}"
    if level is Level.OK and finding.looked_at:
        text += f" ({finding.looked_at})"
    yield from terminal.fields([(word, text)], indent=0)
    rows = (
        [("means", finding.means)]
        if level is Level.OK
        else [
            ("looked at", finding.looked_at),
            ("means", finding.means),
            ("repair", finding.repair),
        ]
    )
    shown = [(Styled(label, "dim"), row) for label, row in rows if row]
    yield from terminal.fields(shown, indent=_WIDTH + 2)


def _not_looked_at(findings: Sequence[Finding], terminal: Terminal) -> Iterator[str]:
    """Yield a line for each reason, with all checks that it has kept from looking."""
    reasons: dict[str, list[str]] = {}
    for one in findings:
        if one.level is Level.SKIPPED:
            names = reasons.setdefault(one.found, [])
            name = f"{one.check} ({one.about})" if one.about else one.check
            if name not in names:
                names.append(name)
    word = Styled("-".ljust(_WIDTH), _STYLES[Level.SKIPPED])
    for reason, names in reasons.items():
        text = f"not looked at: {', '.join(names)}: {reason}"
        yield from terminal.fields([(word, text)], indent=0)


def _sum(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    words = {
        Level.ERROR: ("error", "errors"),
        Level.WARN: ("warning", "warnings"),
        Level.OK: ("ok", "ok"),
        Level.SKIPPED: ("not looked at", "not looked at"),
    }
    parts = [
        f"{counts[level]} {one if counts[level] == 1 else several}"
        for level, (one, several) in words.items()
        if counts[level] or level is Level.ERROR
    ]
    return ", ".join(parts)
