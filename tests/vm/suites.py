# SPDX-License-Identifier: Apache-2.0
"""Suites of Debian's archive that this machine's APT is not configured for.

Each has a separate APT configuration in the cache, with separate lists: nothing
of the machine changes, and nothing of a suite is ever installed.
"""

import logging
import time
from functools import cache
from pathlib import Path

from tests.vm import debs
from tests.vm.architecture import AMD64, Architecture
from tests.vm.cache import cache_dir, one_at_a_time
from tests.vm.debian import CODENAME

log = logging.getLogger(__name__)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# A suite moves, and what its lists name is soon gone from the archive.
LISTS_LAST = 24 * 3600.0


@cache
def archive(suite: str, architecture: Architecture = AMD64) -> debs.Archive:
    """Return the archive of ``suite``, with package lists of the last day."""
    name = suite
    options: tuple[str, ...] = ()
    if architecture is not AMD64:
        name = f"{suite}-{architecture.name}"
        # Both: the second says of which architectures there are lists.
        for key in ("APT::Architecture", "APT::Architectures"):
            options += ("-o", f"{key}={architecture.name}")
    home = cache_dir() / "apt" / name
    found = debs.Archive(name, (*options, *_options(home)))
    with one_at_a_time("apt.lock"):
        if not _is_recent(home / "updated"):
            _configure(home, suite)
            debs.update(found)
            (home / "updated").touch()
    return found


def _configure(home: Path, suite: str) -> None:
    for name in ("lists/partial", "cache/archives/partial"):
        (home / name).mkdir(parents=True, exist_ok=True)
    source = f"deb [signed-by={KEYRING}] {site()} {suite} main\n"
    (home / "sources.list").write_text(source)
    (home / "status").touch()


def _options(home: Path) -> tuple[str, ...]:
    settings = {
        "Dir::Etc::sourcelist": home / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": home / "lists",
        "Dir::State::status": home / "status",
        "Dir::Cache": home / "cache",
        # Descriptions in other languages: half of what there is to download.
        "Acquire::Languages": "none",
    }
    return tuple(word for key in settings for word in ("-o", f"{key}={settings[key]}"))


def site() -> str:
    """The mirror that this machine has its own release of Debian's from."""
    if not debs.sites(CODENAME):
        debs.update()
    sites = debs.sites(CODENAME)
    if not sites:
        raise RuntimeError(
            f"APT has no source of Debian's release {CODENAME!r} whose mirror could be "
            "used: see `apt-get indextargets`, and add one to /etc/apt/sources.list"
        )
    return sites[0]


def _is_recent(stamp: Path) -> bool:
    return stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_LAST
