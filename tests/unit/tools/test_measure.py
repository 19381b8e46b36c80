# SPDX-License-Identifier: Apache-2.0
"""What `tools/measure.py` counts in small sources that it is given."""

import json
from pathlib import Path

import pytest

from tools import measure
from tools.measure import Span

PYTHON = '''\
#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A docstring of
two lines."""

#
# A reason.
LIMIT = 4  # A trailing comment.
"""What LIMIT is for."""


@decorated
class Box:
    """A class."""

    text = """
# No comment: a line of a string.
"""

    def first(self):
        """Return 1."""

        def inner():
            # Another reason.
            return 1

        return inner()

    async def second(self): ...
'''

C = """\
// SPDX-License-Identifier: GPL-2.0-only
/*
 * A theory of operation.
 *
 * It has two lines with words.
 */
#include <stdio.h>
#define OPEN(x) do { \\
	if (x) {

static_assert(sizeof(int) == 4, "an int has { 4 bytes");

struct point {
	int x; /* a trailing comment */
	int y;
};

static const struct point (*points)(int) = { 0 };

enum { RED, GREEN };

/**
 * width() - Return the width
 * @brace: '{' or '}'
 */
static __attribute__((noinline)) int
width(char brace)
{
	if (brace == '{') { /* { is no brace here */
		return 1;
	}
	return 2; // }
}

int height(struct point (*of)(int, char), const char *text)
{
	return of(0, *text).y + sizeof("}{\\"{");
}

void declared_only(int x);
"""


def test_python_lines_are_code_comments_or_neither() -> None:
    counts = measure.count_python(PYTHON)
    # LIMIT, the decorator, class, text (3), first, inner, return, return, second.
    assert counts.code == 11
    assert counts.comments == 2
    assert counts.trailing == 1


def test_python_functions_and_methods_are_counted() -> None:
    counts = measure.count_python(PYTHON)
    assert sorted(counts.functions, key=lambda span: span.name) == [
        Span(8, "first"),
        Span(3, "inner"),
        Span(1, "second"),
    ]
    assert counts.classes == [Span(2, "Box")]


def test_c_functions_are_found_among_structs_macros_and_braces_in_literals() -> None:
    assert list(measure.c_functions(C)) == [Span(8, "width"), Span(4, "height")]


def test_c_comment_lines_have_words_and_no_code() -> None:
    counts = measure.count_c(C)
    assert counts.comments == 4
    assert counts.kernel_doc == 2
    assert counts.trailing == 2  # `// }` has no word
    assert counts.code == 23


def test_sizes_are_summed_up() -> None:
    spans = [Span(size, f"f{size}") for size in (10, 1, 9, 2, 8, 3, 7, 4, 6, 5)]
    assert measure.sizes(spans) == measure.Sizes(10, 5.5, 9, Span(10, "f10"))
    assert measure.sizes([]) is None


TOX_LOG = """\
unit: OK \x1b[32mand more\x1b[0m in 47.08 seconds
  lint: OK (8.03=setup[1.98]+cmd[0.06,5.66] seconds)
\x1b[31m  kmod-debug: FAIL code 1 (55.98=setup[7.05]+cmd[0.86] seconds)\x1b[0m
  evaluation failed :( (969.32 seconds)
"""


def test_durations_come_from_the_summary_of_tox() -> None:
    expected = {"lint": 8.03, "kmod-debug": 55.98, "all": 969.32}
    assert measure.durations(TOX_LOG) == expected
    happy = measure.durations("  congratulations :) (9.5 seconds)\n")
    assert happy == {"all": 9.5}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one Python file of the host, and one C file of the ring."""
    (tmp_path / "host/src/build").mkdir(parents=True)
    (tmp_path / "host/src/box.py").write_text(PYTHON)
    (tmp_path / "host/src/empty.py").write_text("# A comment.\n")
    (tmp_path / "host/src/build/copy.py").write_text(PYTHON)
    (tmp_path / "guest/ring").mkdir(parents=True)
    (tmp_path / "guest/ring/point.c").write_text(C)
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    return tmp_path


def test_report_for_programs_has_each_part(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = checkout / "tox.log"
    log.write_text(TOX_LOG)
    measure.main(["--json", "--durations", str(log), str(checkout)])
    report = json.loads(capsys.readouterr().out)
    host, ring = report["areas"]["host"], report["areas"]["guest/ring"]
    assert host["files"]["count"] == 1  # neither the empty file, nor the build's copy
    assert host["files"]["largest"] == {"size": 29, "name": "host/src/box.py"}
    assert host["functions"]["largest"]["name"] == "host/src/box.py: first"
    assert host["comments_per_100"] == 18.2
    assert ring["functions"]["p90"] == 8
    assert report["classes"] == [{"size": 2, "name": "host/src/box.py: Box"}]
    assert report["import_contracts"] == "none in pyproject.toml"
    assert report["tox_seconds"]["lint"] == 8.03


def test_report_for_people_names_each_part(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure.main([str(checkout)])
    report = capsys.readouterr().out
    assert all(f"\n{area} " in report for area in measure.AREAS)
    assert "2 methods  host/src/box.py: Box" in report
    assert "8 lines    guest/ring/point.c: width" in report


def test_missing_import_linter_is_said(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "pyproject.toml").write_text("[tool.importlinter]\n")
    monkeypatch.setenv("PATH", "")
    verdict = measure.import_contracts(checkout)
    assert verdict == "not checked: lint-imports is not installed"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{}/host"], "/host is not a checkout of vhostpci: it has no host/src"),
        (["--durations", "{}/pyproject.toml", "{}"], "has no summary of tox"),
    ],
)
def test_input_that_cannot_be_measured_is_named(
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        measure.main([argument.format(checkout) for argument in arguments])
    assert complaint in capsys.readouterr().err
