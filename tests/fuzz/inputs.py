# SPDX-License-Identifier: Apache-2.0
"""The inputs at the edges of daemon and agent: a file each, with an input a line."""

from pathlib import Path

EDGES = ("daemon", "kept", "control", "agent", "back_end")


def file(edge: str) -> Path:
    """Return the file with the inputs of an edge."""
    return Path(__file__).parent / "corpus" / f"{edge}.hex"


def read(edge: str) -> list[bytes]:
    """Return the inputs of an edge."""
    return [bytes.fromhex(line) for line in file(edge).read_text().split()]


def write(edge: str, inputs: list[bytes]) -> None:
    """Replace the inputs of an edge; the shortest come first."""
    lines = sorted((data.hex() for data in inputs if data), key=lambda x: (len(x), x))
    file(edge).write_text("".join(f"{line}\n" for line in lines))


def unpack(edge: str, directory: Path) -> Path:
    """Write each input into a file, as libFuzzer reads them; return the directory."""
    directory.mkdir()
    for number, data in enumerate(read(edge)):
        (directory / f"{number:04}").write_bytes(data)
    return directory
