#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The version of all that is released together: print it, or write another one.

    tools/version.py            prints it, or says which files disagree
    tools/version.py 0.2.0      writes it wherever it stands
    tools/version.py --debian   prints it as the Debian packages have it

Each distribution, the kernel module and the READMEs name it, as each is also used
without the others.  A test fails while one of them names another.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HISTORY = "debian/changelog"
ENTRY = """\
vhostpci ({version}) unstable; urgency=medium

  * CHANGELOG.md has what changed in the program.

 -- {maintainer}  {date}

"""

VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")


def debian(version: str) -> str:
    """Return a version for dpkg, for which 0.2.0rc1 would be newer than 0.2.0."""
    # Two: the packages of a release of Debian end in ~deb13, and ~rc1 would be newer
    # than that.
    return re.sub(r"(a|b|rc)(?=\d+$)", r"~~\1", version)


@dataclass(frozen=True, slots=True)
class Place:
    """A file that names the version, and the text before each of its names."""

    file: str
    before: str


PLACES = (
    *(Place(f"{name}/pyproject.toml", "^version = ") for name in ("shared", "host")),
    Place("guest/pyproject.toml", "^version = "),
    Place("host/pyproject.toml", "vhostpci-shared=="),
    Place("guest/pyproject.toml", "vhostpci-shared=="),
    *(
        Place(f"{name}/src/vhostpci_{name}/__init__.py", "^__version__ = ")
        for name in ("shared", "host", "guest")
    ),
    Place(HISTORY, r"\Avhostpci \("),
    Place("host/selinux/vhostpci.te", r"^policy_module\(vhostpci, "),
    Place("kmod/dkms.conf", "^PACKAGE_VERSION="),
    Place("kmod/README.md", "uio_vhostpci[/-]"),
    Place("tests/kmod/test_dkms.py", "uio_vhostpci/"),
)


def _names(place: Place) -> re.Pattern[str]:
    """Match each name of the version in a place: group 2 is the version."""
    return re.compile(rf'({place.before}"?)({VERSION.pattern})', re.MULTILINE)


def found(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yield each file that names the version, and what it names.

    Raises:
        ValueError: a file names none where one was.
    """
    for place in PLACES:
        names = list(_names(place).finditer((root / place.file).read_text()))
        if not names:
            raise ValueError(f"{place.file} names no version after {place.before!r}")
        yield from ((place.file, name[2]) for name in names)


def write(version: str, root: Path = ROOT) -> None:
    """Write a version wherever it stands."""
    for place in PLACES:
        path = root / place.file
        if place.file == HISTORY:
            path.write_text(_with_entry(version, path.read_text()))
        else:
            path.write_text(_names(place).sub(rf"\g<1>{version}", path.read_text()))


def _with_entry(version: str, text: str) -> str:
    """Return Debian's changelog with an entry for a version, unless it is the last."""
    if text.startswith(f"vhostpci ({version})"):
        return text
    _, _, maintainer = text.partition("\n -- ")
    return (
        ENTRY.format(
            version=version,
            maintainer=maintainer.partition("  ")[0],
            date=format_datetime(datetime.now(UTC)),
        )
        + text
    )


def main() -> int:
    """Print the version, or write the one of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?", help="the version to write, as 0.2.0")
    parser.add_argument(
        "--debian", action="store_true", help="print it as the Debian packages have it"
    )
    arguments = parser.parse_args()
    wanted = arguments.version
    if wanted is not None:
        if not VERSION.fullmatch(wanted):
            parser.error(f"{wanted!r} is no version; write one as 0.2.0 or 0.2.0rc1")
        write(wanted)
    places = list(found())
    versions = {version for _, version in places}
    if len(versions) > 1:
        print("version.py: the files disagree:", file=sys.stderr)
        for file, version in places:
            print(f"  {version}  {file}", file=sys.stderr)
        return 1
    version = versions.pop()
    print(debian(version) if arguments.debian else version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
