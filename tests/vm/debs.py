# SPDX-License-Identifier: Apache-2.0
"""Debian packages as files: find, download and unpack them, install none."""

import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deb:
    """A package file that the configured archive offers."""

    filename: str
    size: int
    checksum: str


def locate(packages: Sequence[str]) -> list[Deb]:
    """The files of ``packages`` in the versions that APT would install."""
    listing = _query("apt-get", "download", "--print-uris", *packages)
    lines = [line.split() for line in listing.splitlines() if line.startswith("'")]
    return [Deb(name, int(size), checksum) for _, name, size, checksum in lines]


def kernel_package() -> str:
    """The package that ``linux-image-amd64`` stands for today."""
    record = _query("apt-cache", "show", "--no-all-versions", "linux-image-amd64")
    found = re.search(r"^Depends:.*?(linux-image-\d\S*)", record, re.MULTILINE)
    if not found:
        raise RuntimeError("linux-image-amd64 depends on no kernel")
    return found[1]


def download(packages: Sequence[str], debs: Sequence[Deb], directory: Path) -> None:
    """Fetch the files of ``packages`` that are not in ``directory`` yet."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not is_complete(directory / deb.filename, deb)]
    if not missing:
        return
    size = sum(deb.size for deb in missing) / 1e6
    log.info("downloading %d Debian packages, %.0f MB", len(missing), size)
    try:
        _download(packages, directory)
    except subprocess.CalledProcessError:  # lists older than the archive
        _run("apt-get", "update", "-q")
        _download(packages, directory)


def is_complete(path: Path, deb: Deb) -> bool:
    """Whether ``path`` is all of ``deb``; APT itself has checked the sum."""
    return path.exists() and path.stat().st_size == deb.size


def unpack(deb: Path, root: Path) -> None:
    """Unpack a package's files below ``root``, through the links of a merged /usr."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE
    ) as reader:
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "-C", str(root)],
            check=True,
            stdin=reader.stdout,
            timeout=600,
        )
    if reader.returncode:
        raise RuntimeError(f"{deb} is damaged; delete it and try again")


def _query(*argv: str) -> str:
    """Ask APT; if it does not know the answer, bring its lists up to date first."""
    try:
        return _run(*argv)
    except subprocess.CalledProcessError:
        log.info("downloading Debian's package lists")
        _run("apt-get", "update", "-q")
        return _run(*argv)


def _download(packages: Sequence[str], directory: Path) -> None:
    # As root APT drops to its own user, who may not write into our cache.
    _run(
        *("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root"),
        *packages,
        cwd=directory,
    )


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True, timeout=900
    )
    return done.stdout
