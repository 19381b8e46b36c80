# SPDX-License-Identifier: Apache-2.0
"""Give each error that a user reads its code, and list them: tools/errors.py

An error's class is a `Coded` of `shared/…/errors.py`, and each place that makes one
names its code::

    raise HostError(f"cannot read {path}", code="H017")

A new place needs none: `--write` puts one there, a code that was never used before.
An error that only passes on another one has the code of that: `code=error.code`.
"NEW" stands for a code that is still to be given, where no error is made: in a table.

docs/errors.md lists the codes, below an introduction that is written by hand.  It also
has those that no place uses any more, under "Retired": no code gets another meaning.

    tools/errors.py             say what is wrong (status 1)
    tools/errors.py --write     give codes, and write docs/errors.md
"""

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.error_texts import IN_WORDS, Texts

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/errors.md"
NEW = "NEW"

_CODE = re.compile(r"[A-Z]\d{3}")
_ROW = re.compile(r"^\| ([A-Z]\d{3}) \| (.*?) \|(?: .* \|)?$", re.MULTILINE)

_TREES = {"shared": "S", "host": "H", "guest": "G"}
"""The source trees, in their order on the page, with the letter of their errors."""
_LETTERS = {"ProtocolError": "P", "RingRefused": "R", "RingError": "R", "_Why": "R"}
"""The letters of classes that have one of their own."""
_MAKERS = {"Mistake": 0, "Problem": 1, "Said": 0, "add_mistake": 1, "_Why": 0}
"""What makes an error, and is no error: the place of the text in its arguments."""
_CODE_AT = {"Mistake": 2, "Problem": 2, "Said": 1}
"""The place of the code, if it is no keyword."""
_TEXT = {"RingError": 1}
"""Errors whose first argument is not the text."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the code that makes an error, or has the code of one."""

    path: Path
    line: int
    maker: str
    """The error's class, or what else makes it; "" of a constant."""
    letter: str
    code: str
    """"": it lacks one; NEW: it is to be given."""
    text: str
    follows: str
    """What follows an error of the class; "" if that is as in its area."""
    end: tuple[int, int]
    """Line and column behind the last argument's line; of NEW, where that begins."""


class Classes:
    """The classes of errors in the sources, by their names."""

    def __init__(self, files: "Iterable[File]") -> None:
        self._parents: dict[str, set[str]] = {}
        self._own: dict[str, bool] = {}
        """Whether a class that has its own __init__() takes a code there."""
        for file in files:
            for node in file.classes:
                self._add(node)

    def _add(self, node: ast.ClassDef) -> None:
        parents = {one.id for one in node.bases if isinstance(one, ast.Name)}
        self._parents.setdefault(node.name, set()).update(parents)
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                names = {arg.arg for arg in [*one.args.args, *one.args.kwonlyargs]}
                self._own[node.name] = "code" in names

    def ancestors(self, name: str) -> Iterator[str]:
        """Yield a class, and those that it comes from."""
        yield name
        for parent in sorted(self._parents.get(name, ())):
            yield from self.ancestors(parent)

    def is_coded(self, name: str) -> bool:
        """Whether it is a class of errors with codes, of which each has its own."""
        return "Coded" in self.ancestors(name) and self._own.get(name, True)

    def gives_codes(self, name: str) -> bool:
        """Whether a class gives its errors their code itself."""
        return "Coded" in self.ancestors(name) and not self._own.get(name, True)


class File:
    """One source, with its errors."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.tree_name = path.relative_to(root).parts[0]
        self.text = path.read_text()
        self.tree = ast.parse(self.text)
        # Walked once: it takes longer than all else.
        self.nodes = [*ast.walk(self.tree)]
        self.classes = [one for one in self.nodes if isinstance(one, ast.ClassDef)]

    def sites(self, classes: Classes) -> Iterator[Site]:
        """Yield the places that make an error, or have a code, in their order."""
        texts = Texts(self.tree, self.nodes)
        found: list[Site | None] = [*self._constants()]
        for node in self.nodes:
            if not isinstance(node, ast.Call):
                continue
            maker = _name(node.func)
            if maker == "__init__" and classes.gives_codes(self._owner(node)):
                maker = self._owner(node)
                if not _keyword(node):
                    continue
            elif not (classes.is_coded(maker) or maker in _MAKERS):
                continue
            found.append(self._site(node, maker, classes, texts))
        yield from sorted((one for one in found if one), key=lambda one: one.line)

    def _owner(self, node: ast.expr) -> str:
        """Return the class that an expression stands in."""
        around = (
            one.name
            for one in self.classes
            if one.lineno <= node.lineno <= (one.end_lineno or 0)
        )
        return next(around, "")

    def _site(
        self, node: ast.Call, maker: str, classes: Classes, texts: Texts
    ) -> Site | None:
        keyword = _keyword(node)
        end = (node.end_lineno or 0, (node.end_col_offset or 0) - 1)
        code = ""
        if keyword is not None:
            there = [*_codes(keyword.value)]
            if not there:
                return None  # that of another error
            code, line, column = there[0]
            end = (line, column)
        elif maker in _CODE_AT and len(node.args) > _CODE_AT[maker]:
            return None
        at = _MAKERS.get(maker, _TEXT.get(maker, 0))
        text = texts.of(node.args[at], node) if len(node.args) > at else "…"
        if maker == "_Why":
            text += f"; {texts.of(node.args[1], node)}"
        letter = self._letter(maker, classes)
        follows = _follows(maker, classes)
        return Site(self.path, node.lineno, maker, letter, code, text, follows, end)

    def _letter(self, maker: str, classes: Classes) -> str:
        for name in classes.ancestors(maker):
            if name in _LETTERS:
                return _LETTERS[name]
        # What a data plane says of a ring is no exception.
        if maker == "Said" and "dataplane" in self.path.parts:
            return "R"
        return _TREES[self.tree_name]

    def _constants(self) -> Iterator[Site]:
        """Yield the codes that are constants of the module, with what each is of."""
        body = self.tree.body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.Assign):
                continue
            for code, line, column in _codes(node.value, inside=False):
                text = "…"
                if isinstance(after, ast.Expr) and isinstance(
                    after.value, ast.Constant
                ):
                    text = " ".join(str(after.value.value).split()).rstrip(".")
                    text = text[0].lower() + text[1:]
                letter = _TREES[self.tree_name]
                yield Site(
                    self.path, node.lineno, "", letter, code, text, "", (line, column)
                )


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _keyword(node: ast.Call) -> ast.keyword | None:
    return next((one for one in node.keywords if one.arg == "code"), None)


def _codes(node: ast.expr, *, inside: bool = True) -> Iterator[tuple[str, int, int]]:
    """Yield the codes in an expression, with their line and column."""
    for one in ast.walk(node) if inside else [node]:
        text = one.value if isinstance(one, ast.Constant) else None
        if isinstance(text, str) and (text == NEW or _CODE.fullmatch(text)):
            assert isinstance(one, ast.Constant)
            yield text, one.lineno, one.col_offset


def sources(root: Path = ROOT) -> list[File]:
    """Return the sources of which the programs are made."""
    return [
        File(path, root)
        for tree in _TREES
        for path in sorted((root / tree / "src").rglob("*.py"))
    ]


def all_sites(root: Path = ROOT) -> list[Site]:
    """Return all places that make an error."""
    files = sources(root)
    classes = Classes(files)
    return [site for file in files for site in file.sites(classes)]


def listed(page: str) -> dict[str, str]:
    """Return the codes of a page, those that are retired too, with their texts."""
    return dict(_ROW.findall(page))


def mistakes(sites: Sequence[Site], page: str) -> Iterator[str]:
    """Yield what is wrong with the codes in the sources."""
    retired = listed(page.partition("## Retired")[2])
    count = Counter(site.code for site in sites)
    for site in sites:
        where = f"{site.path.relative_to(ROOT)}:{site.line}"
        if site.code in ("", NEW):
            yield f"{where}: this {site.maker or 'constant'} has no code"
        elif count[site.code] > 1:
            yield f"{where}: {site.code} is in several places: remove it from the new"
        elif site.code in retired:
            yield f"{where}: {site.code} was another error's: remove it"


def give_codes(sites: Sequence[Site], page: str) -> set[Path]:
    """Write a code into each place that lacks one; return the files."""
    used = {*listed(page), *(site.code for site in sites)}
    last = dict.fromkeys("SHGPR", 0)
    for code in used - {"", NEW}:
        last[code[0]] = max(last[code[0]], int(code[1:]))
    wanted: dict[Path, list[tuple[Site, str]]] = {}
    for site in sites:
        if site.code in ("", NEW):
            last[site.letter] += 1
            code = f"{site.letter}{last[site.letter]:03}"
            wanted.setdefault(site.path, []).append((site, code))
    for path, pairs in wanted.items():
        path.write_bytes(_with_codes(path.read_bytes(), pairs))
    return {*wanted}


def _with_codes(data: bytes, pairs: Sequence[tuple[Site, str]]) -> bytes:
    lines = data.splitlines(keepends=True)
    # From the end, so that each place is still where it was found.
    for site, code in sorted(pairs, key=lambda pair: pair[0].end, reverse=True):
        row, column = site.end
        at = sum(len(line) for line in lines[: row - 1]) + column
        before, after = data[:at], data[at:]
        if site.code == NEW:
            data = before + f'"{code}"'.encode() + after[len(NEW) + 2 :]
        else:
            comma = b"" if before.rstrip().endswith((b",", b"(")) else b", "
            data = before.rstrip() + comma + f'code="{code}"'.encode() + after
        lines = data.splitlines(keepends=True)
    return data


def page_of(sites: Sequence[Site], before: str) -> str:
    """Return docs/errors.md, given what it was."""
    now = {site.code for site in sites}
    retired = {code: text for code, text in listed(before).items() if code not in now}
    # What stands above the tables is written by hand.
    head = before.partition("\n\n## ")[0]
    return "\n".join([head, *_tables(sites), *_retired(retired), ""])


def _tables(sites: Sequence[Site]) -> Iterator[str]:
    areas: dict[str, list[Site]] = {area: [] for area in _AREAS}
    for site in sites:
        areas[_area(site.path)].append(site)
    for area, there in areas.items():
        title, follows = _AREAS[area]
        if there:
            yield from ("", f"## {title}", "", "| Code | Text | What follows |")
            yield "|---|---|---|"
        for site in sorted(there, key=lambda one: one.code):
            what = site.follows or follows
            yield f"| {site.code} | {_cell(site)} | {what} |"


def _area(path: Path) -> str:
    """Return the narrowest area of the page that a source belongs to."""
    tree, _, _, *folders = path.relative_to(ROOT).parent.parts
    while "/".join([tree, *folders]) not in _AREAS:
        folders.pop()
    return "/".join([tree, *folders])


def _follows(maker: str, classes: Classes) -> str:
    """Return what follows an error of its class; "" if that is as in its area."""
    for name in classes.ancestors(maker):
        if name in _FOLLOWS:
            return _FOLLOWS[name]
    return ""


def _cell(site: Site) -> str:
    text = IN_WORDS.get(site.code, site.text)
    return text.replace("|", "\\|").replace("<", "&lt;")


def _retired(codes: Mapping[str, str]) -> Iterator[str]:
    yield from ("", "## Retired", "")
    if not codes:
        yield "There are none yet."
        return
    yield "No error has these codes any more, and none will have one of them."
    yield from ("", "| Code | Text |", "|---|---|")
    yield from (f"| {code} | {codes[code]} |" for code in sorted(codes))


_FAILS = "status 1"
_WRONG = "status 2"
_WRONG_VALUE = "status 2; of a file 1"
_DROPPED = "the peer is dropped"
_AGAIN = "tried again"
_RING = "the ring stands still"

_FOLLOWS: Mapping[str, str] = {
    "BadAddress": _WRONG,
    "BadValue": _WRONG_VALUE,
    "BrokenFile": _FAILS,
    "Mistake": _FAILS,
    "NoBarriers": _FAILS,
    "OutsideMemory": _RING,
    "PeersExhausted": "the slave connects again",
    "PlugError": _AGAIN,
    "Problem": _WRONG_VALUE,
    "ProtocolError": _DROPPED,
    "RingError": _RING,
    "RingRefused": _RING,
    "ServerGone": _AGAIN,
    "Unreadable": _FAILS,
    "Unservable": _RING,
    "Usage": _WRONG,
    "UsageError": _WRONG,
    "_Why": _RING,
    "add_mistake": _FAILS,
}
"""What follows an error of a class, wherever it is."""

_AREAS: Mapping[str, tuple[str, str]] = {
    "host/cli": ("The host's command line", _FAILS),
    "host/config": ("The host's options and configuration file", _WRONG_VALUE),
    "host/daemon": ("The daemon and its commands", _FAILS),
    "host/keeper": ("The daemon's keeper", _FAILS),
    "host/filter": ("The filter of system calls", _FAILS),
    "host/doctor": ("The host's doctor", _FAILS),
    "host": ("The host's files and sockets", _FAILS),
    "host/memory": ("The master's memory", _FAILS),
    "host/vhost_user": ("The front-end: vhost-user", _DROPPED),
    "host/device": ("The front-end and the slave", _DROPPED),
    "host/ivshmem": ("The slave: ivshmem", _DROPPED),
    "host/hotplug": ("The slave VM: hot-plug", _AGAIN),
    "guest/cli": ("The agent's command line", _FAILS),
    "guest/config": ("The agent's options and configuration file", _WRONG_VALUE),
    "guest": ("The agent's status socket", _FAILS),
    "guest/privileges": ("The agent's helpers", _FAILS),
    "guest/pci": ("The ivshmem functions", _FAILS),
    "guest/socket": ("The daemon's sockets, for a slave process", _AGAIN),
    "guest/serve": ("The devices of an agent", _FAILS),
    "guest/tap": ("TAPs and bridges", _FAILS),
    "guest/dataplane": ("Rings and data planes", _RING),
    "guest/dataplane/vhost_user": ("The data plane vhost-user", _FAILS),
    "guest/doctor": ("The agent's doctor", _FAILS),
    "shared": ("Both programs: files, options and formats", _FAILS),
    "shared/dump": ("Both programs: dump", _FAILS),
}
"""The areas of the page, by their folders: title, and what follows an error there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write the codes and their page; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="give codes, write them")
    args = parser.parse_args(arguments)
    before = PAGE.read_text() if PAGE.exists() else ""
    if args.write and (changed := give_codes(all_sites(), before)):
        subprocess.run(["ruff", "format", "-q", *changed], check=True)
    sites = all_sites()
    found = [*mistakes(sites, before)]
    if not found:
        page = page_of(sites, before)
        if args.write:
            PAGE.write_text(page)
        elif page != before:
            found.append(f"{PAGE.relative_to(ROOT)}: out of date")
    for one in found:
        print(one, file=sys.stderr)
    if found:
        print("run: python -m tools.errors --write", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
