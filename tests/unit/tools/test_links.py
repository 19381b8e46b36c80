# SPDX-License-Identifier: Apache-2.0
"""Every link in the documents leads to a file, and to a heading that is in it."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
DOCUMENTS = subprocess.run(
    ("git", "ls-files", "-z", "*.md"),
    cwd=ROOT,
    check=False,
    stdout=subprocess.PIPE,
    text=True,
).stdout.split("\0")[:-1] or [str(path.relative_to(ROOT)) for path in ROOT.glob("*.md")]


def prose(text: str) -> str:
    """Return a document without its examples."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """Return what a forge makes of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    kept = re.sub(r"[^\w\- ]", "", plain.strip().lower())
    return kept.replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    text = prose(path.read_text())
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE):
        name = anchor(heading)
        again = sum(one == name for one in map(anchor, found))
        found.append(f"{name}-{again}" if again else name)
    return frozenset(found)


def broken(document: Path) -> list[str]:
    """Return the links of a document that lead nowhere."""
    wrong = []
    for text, picture in LINK.findall(prose(document.read_text())):
        link = text or picture
        if re.match(r"[a-z]+:", link):
            continue  # another machine's
        file, _, heading = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.exists() or (heading and heading not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    assert broken(ROOT / name) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` C\n[one](#a-b-c) [two](#none) [three](gone.md)\n"
        "[four](page.md#a-b-c) [five](page.md#x)\n```\n[six](gone.md)\n# x\n```\n"
    )
    assert broken(page) == ["#none", "gone.md", "page.md#x"]
