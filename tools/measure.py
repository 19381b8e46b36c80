#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print the sizes of the sources, so that two checkouts can be compared.

For each part of the project, this command counts files, functions and comment
lines.  It also names the classes with the most methods, runs import-linter if it
is installed, and can show how long each tox environment took:

    tools/measure.py
    tools/measure.py --durations tox.log ../older-checkout

It needs Python 3.11 and no package.
"""

import argparse
import ast
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

AREAS = {
    "host": ("host/src", ("*.py",)),
    "guest": ("guest/src", ("*.py",)),
    "shared": ("shared/src", ("*.py",)),
    "guest/ring": ("guest/ring", ("*.c", "*.h")),
    "shared/relay": ("shared/relay", ("*.c", "*.h")),
    "shared/memory": ("shared/memory", ("*.c", "*.h")),
    "kmod": ("kmod", ("*.c", "*.h")),
    "tests": ("tests", ("*.py",)),
    "tests, C": ("tests", ("*.c", "*.h")),
}
"""Each part of the project: its folder, and the names of its files."""

MOST_METHODS = 5
"""How many of the classes with the most methods are named."""


@dataclass(frozen=True, slots=True)
class Span:
    """A file, a function or a class, and its size (lines, or methods)."""

    size: int
    name: str


@dataclass(slots=True)
class Counts:
    """What one file holds.

    `comments` are lines with nothing but a comment, and `kernel_doc` are those of
    them that describe a C function.  `trailing` are lines of code with a comment
    behind the code.  Docstrings are neither `code` nor `comments`, and neither is a
    line with an SPDX tag.
    """

    code: int = 0
    comments: int = 0
    trailing: int = 0
    kernel_doc: int = 0
    functions: list[Span] = field(default_factory=list)
    classes: list[Span] = field(default_factory=list)


# Python.

_LAYOUT_TOKENS = {
    *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER),
}


def _docstring_lines(tree: ast.AST) -> set[int]:
    """Return the lines of each statement that is nothing but a string."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def _is_reason(comment: str) -> bool:
    """Whether a `#` comment says something: no SPDX tag, no `#!` line, not empty."""
    return not comment.startswith("#!") and _says_something(comment)


def _says_something(comment: str) -> bool:
    return "SPDX-License-Identifier" not in comment and bool(re.search(r"\w", comment))


def count_python(text: str) -> Counts:
    """Count one Python file.

    A function's size includes its docstring, not its decorators.
    """
    tree = ast.parse(text)
    counts = Counts()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT_TOKENS:
            code.update(range(token.start[0], token.end[0] + 1))
        elif token.type == tokenize.COMMENT and _is_reason(token.string):
            if token.line[: token.start[1]].strip():
                counts.trailing += 1
            else:
                counts.comments += 1
    counts.code = len(code - _docstring_lines(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            counts.functions.append(Span(size, node.name))
        elif isinstance(node, ast.ClassDef):
            methods = (ast.FunctionDef, ast.AsyncFunctionDef)
            size = sum(isinstance(child, methods) for child in node.body)
            counts.classes.append(Span(size, node.name))
    return counts


# C.

_C_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<literal>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""",
    re.DOTALL | re.VERBOSE,
)
_C_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_C_ATTRIBUTE = re.compile(r"__attribute__\s*\(\(.*?\)\)\s*")
# A function's head ends in its parameters; what stands before them is its name.
_C_HEAD = re.compile(r"(\w+)\s*\([^={};]*\)\s*$")


def _blank(text: str) -> str:
    """Return as many spaces and line ends as `text` has, so that lines stay."""
    return re.sub(r"[^\n]", " ", text)


def _without_comments(text: str) -> str:
    """Blank the comments of C."""
    return _C_TOKEN.sub(
        lambda token: _blank(token[0]) if token["comment"] else token[0], text
    )


def _only_structure(text: str) -> str:
    """Blank comments, literals and preprocessor lines: only real braces remain."""
    return _C_DIRECTIVE.sub(
        lambda line: _blank(line[0]),
        _C_TOKEN.sub(lambda token: _blank(token[0]), text),
    )


def c_functions(text: str) -> Iterator[Span]:
    """Find the functions of a C file, from the return type to the last brace."""
    text = _only_structure(text)
    depth = 0
    start = 0  # where the declaration began that we are in
    head: tuple[int, str] | None = None  # of the function that we are in
    for mark in re.finditer(r"[{};]", text):
        if mark[0] == "{":
            if not depth:
                head = _c_head(text, start, mark.start())
            depth += 1
            continue
        depth -= mark[0] == "}"
        if depth:
            continue
        start = mark.end()
        if head is not None:
            first, name = head
            yield Span(text.count("\n", first, mark.start()) + 1, name)
            head = None


def _c_head(text: str, start: int, end: int) -> tuple[int, str] | None:
    """Return where the function begins whose `{` is at `end`, and its name."""
    head = text[start:end]
    found = _C_HEAD.search(_C_ATTRIBUTE.sub("", head))
    if not found:
        return None  # a struct, an enum, or a variable's value
    return start + len(head) - len(head.lstrip()), found[1]


def count_c(text: str) -> Counts:
    """Count one C file.

    The lines of a comment that only open or close it have no words, and are not
    counted.
    """
    bare = _without_comments(text).splitlines()
    counts = Counts(code=sum(bool(line.strip()) for line in bare))
    for token in _C_TOKEN.finditer(text):
        if token["comment"] is None:
            continue
        first = text.count("\n", 0, token.start())
        for number, line in enumerate(token[0].split("\n"), first):
            if not _says_something(line):
                continue
            if bare[number].strip():
                counts.trailing += 1
            else:
                counts.comments += 1
                counts.kernel_doc += token[0].startswith("/**")
    counts.functions = list(c_functions(text))
    return counts


# The whole checkout.


@dataclass(frozen=True, slots=True)
class Sizes:
    """Median, 90th percentile and largest of some sizes."""

    count: int
    median: float
    p90: int
    largest: Span


def sizes(spans: Sequence[Span]) -> Sizes | None:
    """Sum up `spans`; None if there are none."""
    if not spans:
        return None
    ordered = sorted(spans, key=lambda span: span.size)
    ninetieth = ordered[math.ceil(len(ordered) * 0.9) - 1]
    median = statistics.median(span.size for span in ordered)
    return Sizes(len(ordered), median, ninetieth.size, ordered[-1])


@dataclass(frozen=True, slots=True)
class Area:
    """The figures of one part of the project; `total` sums up its files."""

    name: str
    files: Sizes | None
    functions: Sizes | None
    total: Counts

    def per_hundred(self, comments: int) -> float:
        """Return how many comment lines there are for 100 lines of code."""
        return round(100 * comments / self.total.code, 1) if self.total.code else 0.0


def _sources(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files below `folder`, without those in hidden or build folders."""
    found = (path for pattern in patterns for path in folder.rglob(pattern))
    # A symbolic link is a file of another part.
    found = (path for path in found if not path.is_symlink())
    return sorted(
        path
        for path in found
        if not any(
            part.startswith(".") or part in ("build", "__pycache__")
            for part in path.relative_to(folder).parts
        )
    )


def _add(total: Counts, counts: Counts, where: str) -> None:
    """Add the counts of the file `where` to those of its area."""
    total.code += counts.code
    total.comments += counts.comments
    total.trailing += counts.trailing
    total.kernel_doc += counts.kernel_doc
    total.functions += [Span(f.size, f"{where}: {f.name}") for f in counts.functions]
    total.classes += [Span(c.size, f"{where}: {c.name}") for c in counts.classes]


def measure_area(root: Path, name: str) -> Area:
    """Measure the part of the checkout that `AREAS` calls `name`.

    A file without a line of code, as most `__init__.py` are, is not counted.
    """
    folder, patterns = AREAS[name]
    files: list[Span] = []
    total = Counts()
    for path in _sources(root / folder, patterns):
        text = path.read_text()
        counts = count_python(text) if path.suffix == ".py" else count_c(text)
        if counts.code:
            where = str(path.relative_to(root))
            files.append(Span(len(text.splitlines()), where))
            _add(total, counts, where)
    return Area(name, sizes(files), sizes(total.functions), total)


def import_contracts(root: Path) -> str:
    """Run import-linter in the checkout; return its verdict, or why there is none."""
    if "importlinter" not in (root / "pyproject.toml").read_text():
        return "none in pyproject.toml"
    linter = shutil.which("lint-imports")
    if linter is None:
        return "not checked: lint-imports is not installed"
    # import-linter imports the packages' sources, which need not be installed.
    path = os.pathsep.join(
        str(root / part / "src") for part in AREAS if "/" not in part
    )
    run = subprocess.run(
        [linter, "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    verdict = re.search(r"Contracts: (.*?)\.?$", run.stdout, re.MULTILINE)
    return verdict[1] if verdict else f"lint-imports failed: {run.stdout}{run.stderr}"


_TOX_LINE = re.compile(
    r"^\s*(?P<name>\S+): (?P<result>OK|SKIP|FAIL[^(]*?) \((?P<seconds>[\d.]+)=setup"
)
_TOX_END = re.compile(r"^\s*(?:congratulations|evaluation failed)\b.*\((\S+) seconds\)")


def durations(log: str) -> dict[str, float]:
    """Return each tox environment's seconds, and "all", from the end of tox's log."""
    found: dict[str, float] = {}
    for line in re.sub(r"\x1b\[[\d;]*m", "", log).splitlines():
        if environment := _TOX_LINE.match(line):
            found[environment["name"]] = float(environment["seconds"])
        elif end := _TOX_END.match(line):
            found["all"] = float(end[1])
    return found


# What is printed.


HEADINGS = (
    *("part", "files", "median", "largest"),
    *("functions", "median", "p90", "largest"),
    *("code", "comments%", "behind code%", "kernel-doc%"),
)


def _row(area: Area) -> list[str]:
    none = Sizes(0, 0, 0, Span(0, ""))
    files, functions = area.files or none, area.functions or none
    total = area.total
    return [
        area.name,
        *(f"{files.count}", f"{files.median:g}", f"{files.largest.size}"),
        *(f"{functions.count}", f"{functions.median:g}", f"{functions.p90}"),
        f"{functions.largest.size}",
        f"{total.code}",
        f"{area.per_hundred(total.comments)}",
        f"{area.per_hundred(total.trailing)}",
        f"{area.per_hundred(total.kernel_doc)}" if total.kernel_doc else "-",
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _largest_classes(areas: Sequence[Area]) -> list[Span]:
    """Return the classes with the most methods; those of the tests do not count."""
    ours = (area for area in areas if not area.name.startswith("tests"))
    classes = [span for area in ours for span in area.total.classes]
    return sorted(classes, key=lambda span: -span.size)[:MOST_METHODS]


def text_report(areas: Sequence[Area], contracts: str, times: dict[str, float]) -> str:
    """Return the report for people: sizes are in lines."""
    parts = [
        _table([HEADINGS, *map(_row, areas)]),
        "",
        "Largest file and function:",
    ]
    for area in areas:
        for found in filter(None, (area.files, area.functions)):
            parts.append(f"  {found.largest.size:5} lines    {found.largest.name}")
    parts += ["", "Classes with the most methods:"]
    parts += [f"  {c.size:5} methods  {c.name}" for c in _largest_classes(areas)]
    parts += ["", f"Import contracts: {contracts}"]
    if times:
        parts += ["", "Seconds of each tox environment:"]
        parts += [f"  {seconds:8.1f}  {name}" for name, seconds in times.items()]
    return "\n".join(parts)


def json_report(areas: Sequence[Area], contracts: str, times: dict[str, float]) -> str:
    """Return the report for programs."""
    per_area = {
        area.name: {
            "files": area.files and asdict(area.files),
            "functions": area.functions and asdict(area.functions),
            "code_lines": area.total.code,
            "comments_per_100": area.per_hundred(area.total.comments),
            "trailing_comments_per_100": area.per_hundred(area.total.trailing),
            "kernel_doc_per_100": area.per_hundred(area.total.kernel_doc),
        }
        for area in areas
    }
    report = {
        "areas": per_area,
        "classes": [asdict(span) for span in _largest_classes(areas)],
        "import_contracts": contracts,
        "tox_seconds": times,
    }
    return json.dumps(report, indent=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the checkout that the command line names, and print the report."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", 1)[0],
        epilog="All sizes are in lines.  Files without code are not counted.  For "
        "100 lines of code, `comments%` are lines with nothing but a comment, and "
        "`behind code%` are those with code before the comment.  Docstrings and SPDX "
        "lines count as neither.",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path(__file__).resolve().parent.parent,
        help="a checkout of vhostpci (default: the one with this file)",
    )
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--durations", metavar="FILE", type=Path, help="a log of tox: add its times"
    )
    options = parser.parse_args(arguments)
    root: Path = options.directory.resolve()
    if not (root / "host" / "src").is_dir():
        parser.error(f"{root} is not a checkout of vhostpci: it has no host/src")
    times = {}
    if options.durations is not None:
        times = durations(options.durations.read_text(errors="replace"))
        if not times:
            parser.error(f"{options.durations} has no summary of tox at its end")
    areas = [measure_area(root, name) for name in AREAS]
    report = json_report if options.json else text_report
    print(report(areas, import_contracts(root), times))


if __name__ == "__main__":
    main()
