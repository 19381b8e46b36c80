# SPDX-License-Identifier: Apache-2.0
"""Debian packages as files: find, download and unpack them, install none."""

import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.vm.cache import cache_dir

log = logging.getLogger(__name__)

# As root APT drops to its own user, who may not write into our cache.
AS_ROOT = ("-o", "APT::Sandbox::User=root")


@dataclass(frozen=True, slots=True)
class Deb:
    """A package file that the configured archive offers."""

    filename: str
    size: int
    checksum: str

    @property
    def package(self) -> str:
        """The name of what it is a version of."""
        return self.filename.partition("_")[0]


@dataclass(frozen=True, slots=True)
class Archive:
    """What APT looks packages up in, by the options that say so."""

    name: str
    options: tuple[str, ...] = ()


MACHINE = Archive("this machine's")
"""What this machine's APT is configured for."""


def locate(packages: Sequence[str], archive: Archive = MACHINE) -> list[Deb]:
    """The files of ``packages`` in the versions that APT would install."""
    return _debs(_query(archive, "apt-get", "download", "--print-uris", *packages))


def resolve(packages: Sequence[str], archive: Archive) -> list[Deb]:
    """The files of ``packages`` and of all that they depend on."""
    options = ("--print-uris", "--yes", "--no-install-recommends")
    return _debs(_query(archive, "apt-get", "install", *options, *packages))


def depends(package: str, pattern: str, archive: Archive = MACHINE) -> tuple[str, ...]:
    """The packages that one depends on today, those whose names match; one at least."""
    names = relations(package, pattern, archive)
    if not names:
        raise RuntimeError(f"{package} depends on nothing like {pattern}")
    return names


@cache
def relations(
    package: str, pattern: str, archive: Archive = MACHINE
) -> tuple[str, ...]:
    """The packages that one depends on today, those whose names match, if any."""
    record = _query(archive, "apt-cache", "show", "--no-all-versions", package)
    found = re.search(r"^Depends: (.*)", record, re.MULTILINE)
    words = re.split(r" *[,|] *", found[1]) if found else []
    return tuple(name for name, *_ in map(str.split, words) if re.match(pattern, name))


def sites(codename: str) -> list[str]:
    """The mirrors that this machine has a release of Debian's from."""
    targets = ("Created-By: Packages", "Origin: Debian", f"Codename: {codename}")
    listing = _run("apt-get", "indextargets", "--format", "$(SITE)", *targets)
    return listing.split()


def update(archive: Archive = MACHINE) -> None:
    """Fetch an archive's package lists."""
    log.info("downloading Debian's package lists (%s)", archive.name)
    _run("apt-get", *archive.options, "update", "-q", *AS_ROOT)


def download(
    packages: Sequence[str],
    debs: Sequence[Deb],
    directory: Path,
    archive: Archive = MACHINE,
) -> None:
    """Fetch the files of ``packages`` that are not in ``directory`` yet."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not is_complete(directory / deb.filename, deb)]
    if not missing:
        return
    size = sum(deb.size for deb in missing) / 1e6
    log.info("downloading %d Debian packages, %.0f MB", len(missing), size)
    try:
        _download(packages, directory, archive)
    except subprocess.CalledProcessError:  # lists older than the archive
        update(archive)
        _download(packages, directory, archive)
    for deb in debs:
        if not is_complete(directory / deb.filename, deb):
            raise RuntimeError(
                f"{archive.name} has another version than {deb.filename} by now: its "
                "lists are up to date again, so try once more"
            )


def is_complete(path: Path, deb: Deb) -> bool:
    """Whether ``path`` is all of ``deb``; APT itself has checked the sum."""
    return path.exists() and path.stat().st_size == deb.size


def merge_usr(root: Path) -> None:
    """Make the links of a merged /usr, for packages that still go by /bin and /lib."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def unpack(deb: Path, root: Path) -> None:
    """Unpack a package's files below ``root``, through links that are there."""
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


def _debs(listing: str) -> list[Deb]:
    lines = [line.split() for line in listing.splitlines() if line.startswith("'")]
    return [Deb(name, int(size), checksum) for _, name, size, checksum in lines]


def _query(archive: Archive, program: str, *argv: str) -> str:
    """Ask APT; if it does not know the answer, bring its lists up to date first."""
    command = (program, *archive.options, *_parsed_lists(archive), *argv)
    try:
        return _run(*command)
    except subprocess.CalledProcessError:
        update(archive)
        return _run(*command)


def _parsed_lists(archive: Archive) -> tuple[str, ...]:
    """Options that let APT keep what it has parsed of an archive's lists.

    The configuration of a container forbids that, and then each question takes a second
    of processor time instead of a quarter.  APT sees by itself when the lists change.
    """
    name = "machine" if archive == MACHINE else archive.name
    directory = cache_dir() / "apt" / f"parsed-{name}"
    directory.mkdir(parents=True, exist_ok=True)
    return tuple(
        word
        for kind in ("pkgcache", "srcpkgcache")
        for word in ("-o", f"Dir::Cache::{kind}={directory / kind}.bin")
    )


def _download(packages: Sequence[str], directory: Path, archive: Archive) -> None:
    argv = ("apt-get", *archive.options, "download", "-q", *AS_ROOT, *packages)
    _run(*argv, cwd=directory)


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True, timeout=900
    )
    return done.stdout
