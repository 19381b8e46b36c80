# SPDX-License-Identifier: Apache-2.0
"""Whether a QEMU's command line says that its chardev connects again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostpci_host.daemon.reconnects import says_reconnect


@contextmanager
def process(*words: str, directory: Path) -> Iterator[int]:
    """A process that has these words in its command line; yield its number."""
    argv = ["sh", "-c", "echo; read word", "sh", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=directory) as one:
        assert one.stdout is not None
        one.stdout.readline()  # it has its command line now
        yield one.pid
        one.communicate(b"\n")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("socket,id=c,path={path},reconnect=1", True),
        ("socket,id=c,path={path},reconnect-ms=1000", True),
        ("socket,id=c,reconnect-ms=20,path={path},server=off", True),
        ("backend=socket,id=c,path={path},reconnect=1", True),
        ("socket,id=c,path=dev.vhost-user,reconnect=1", True),
        ("socket,id=c,path=/nowhere,path={path},reconnect=1", True),
        ("socket,id=c,path={path}", False),
        ("socket,id=c,path={path},reconnect=0", False),
        ("socket,id=c,path={path},reconnect-ms=000", False),
        ("socket,id=c,path={path},reconnect=", False),
        ("socket,id=c,path={path},reconnect=1x", False),
        ("socket,id=c,path={path}x,reconnect=1", False),
        ("socket,id=c,path={path},path=/nowhere,reconnect=1", False),
        ("socket,id=c,path={path},,reconnect=1", False),
        ("socket,id=c,reconnect=1", False),
        ("net_virtio_user0,path={path},reconnect=1", False),
        ("", False),
    ],
)
def test_chardev(tmp_path: Path, word: str, expected: bool) -> None:
    path = tmp_path / "dev.vhost-user"
    words = ("-m", "1G", "-chardev", word.format(path=path), "-daemonize")
    with process(*words, directory=tmp_path) as pid:
        assert says_reconnect(pid, path) == expected


def test_comma_in_a_path_is_two(tmp_path: Path) -> None:
    path = tmp_path / "a,b" / "dev.vhost-user"
    path.parent.mkdir()
    word = f"socket,id=c,path={str(path).replace(',', ',,')},reconnect=1"
    with process(word, directory=tmp_path) as pid:
        assert says_reconnect(pid, path)


def test_other_way_to_the_same_directory_is_the_same_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "other").symlink_to("run")
    word = f"socket,id=c,path={tmp_path}/other/s,reconnect=1"
    with process(word, directory=tmp_path) as pid:
        assert says_reconnect(pid, tmp_path / "run" / "s")


def test_other_chardev_says_nothing_of_ours(tmp_path: Path) -> None:
    words = (
        f"socket,id=c,path={tmp_path}/s",
        f"socket,id=d,path={tmp_path}/t,reconnect=1",
    )
    with process(*words, directory=tmp_path) as pid:
        assert not says_reconnect(pid, tmp_path / "s")


def test_process_that_has_ended_says_nothing(tmp_path: Path) -> None:
    with process(directory=tmp_path) as pid:
        pass
    assert not says_reconnect(pid, tmp_path)
    assert not says_reconnect(0, tmp_path)
    assert not says_reconnect(os.getpid(), tmp_path)
