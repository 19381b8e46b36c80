# SPDX-License-Identifier: Apache-2.0
"""The list of system calls is up to date, and each source names those that it makes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import system_calls
from tools.system_calls import NoList, declared, joined
from vhostpci_host.filter.allowed import ALLOWED
from vhostpci_host.filter.conditions import conditions

CAUSED = {
    "fcntl.flock": "flock",
    "os.chmod": "chmod",
    "os.chown": "chown",
    "os.eventfd": "eventfd2",
    "os.fchmod": "fchmod",
    "os.fchown": "fchown",
    "os.fstatvfs": "fstatfs",
    "os.ftruncate": "ftruncate",
    "os.kill": "kill",
    "os.link": "link",
    "os.lstat": "lstat",
    "os.memfd_create": "memfd_create",
    "os.mkdir": "mkdir",
    "os.pidfd_open": "pidfd_open",
    "os.posix_fallocate": "fallocate",
    "os.pwrite": "pwrite64",
    "os.preadv": "preadv2",
    "os.pwritev": "pwritev2",
    "os.rename": "rename",
    "os.rmdir": "rmdir",
    "os.symlink": "symlink",
    "os.unlink": "unlink",
    "socket.socket": "socket",
    "socket.socketpair": "socketpair",
}
"""What causes a system call that the interpreter does not need by itself."""
PLAIN = {
    *("_exit", "close", "dup", "dup2", "fdopen", "fstat", "open", "pipe2", "pread"),
    *(
        "read",
        "readlink",
        "set_blocking",
        "set_inheritable",
        "stat",
        "statvfs",
        "write",
    ),
    *("eventfd_write", "getegid", "geteuid", "getpid", "getppid", "uname"),
    "urandom",
    # No system call.
    *("fsencode", "fspath", "major", "makedev", "minor", "strerror"),
}
"""Functions of `os` that cause only those of `filter/interpreter.py`, or none."""
OTHER_PROCESSES = (
    *("cli/", "daemon/control_client.py", "doctor/", "hotplug/runner.py"),
    *("keeper/launch.py", "keeper/log_line.py", "keeper/process.py"),
    *("keeper/numbers_of_fds.py", "keeper/upstream.py"),
)
"""Sources of the daemon's package that no daemon runs under its filter."""
FOR_PEOPLE = (
    *("terminal.py", "screen.py", "device_tables.py", "dump/", "metrics"),
    *("machine.py", "findings.py", "print_findings.py", "systemd_unit.py"),
)
"""Sources of the shared package that only short commands import."""


def daemon_sources() -> Iterator[Path]:
    for path in system_calls.sources():
        place = path.as_posix().rpartition("/vhostpci_host/")[2]
        shared = path.as_posix().rpartition("/vhostpci_shared/")[2]
        other = place.startswith(OTHER_PROCESSES) or shared.startswith(FOR_PEOPLE)
        if path.suffix == ".py" and not other:
            yield path


def caused(tree: ast.AST) -> Iterator[str]:
    """Yield the system calls that a source causes by functions of the library."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, name = node.func.value, node.func.attr
            if isinstance(of, ast.Name) and f"{of.id}.{name}" in CAUSED:
                yield CAUSED[f"{of.id}.{name}"]


def test_list_is_made_from_the_sources_of_today(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert system_calls.main([]) == 0, capsys.readouterr().err


def test_changed_source_makes_the_list_out_of_date(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "module.py"
    source.write_text("# System calls: ptrace.\n")
    there = system_calls.sources()
    monkeypatch.setattr(system_calls, "sources", lambda: [*there, source])
    assert system_calls.main([]) == 1
    assert "--write" in capsys.readouterr().err


@pytest.mark.parametrize("path", [*daemon_sources()], ids=lambda path: path.stem)
def test_source_names_the_system_calls_that_it_causes(path: Path) -> None:
    text = path.read_text()
    missing = set(caused(ast.parse(text))) - declared(text).keys()
    assert not missing, f"write them into a comment: System calls: {missing}"


@pytest.mark.parametrize("path", [*daemon_sources()], ids=lambda path: path.stem)
def test_what_each_function_of_the_system_causes_is_known(path: Path) -> None:
    """One that is in no list here may cause a call that the filter forbids."""
    known = {name.removeprefix("os.") for name in CAUSED} | PLAIN
    used = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "os"
    }
    assert used <= known


def test_each_condition_of_the_list_is_one_that_the_filter_knows() -> None:
    known = conditions()
    for call, names in ALLOWED.items():
        assert set(names) <= known.get(call, {}).keys(), call
        # Without a name it would be allowed with all arguments.
        assert bool(names) == (call in known), call


@pytest.mark.parametrize(
    "call", ["execve", "fork", "vfork", "ptrace", "bpf", "mount", "setns", "clone3"]
)
def test_call_that_would_open_a_way_out_is_not_in_the_list(call: str) -> None:
    assert call not in ALLOWED


def test_comments_of_python_and_c_are_read() -> None:
    text = "    # System calls: poll, socket(AF_UNIX).\n\t * System calls: read.\n"
    assert declared(text) == {"poll": set(), "socket": {"AF_UNIX"}, "read": set()}


@pytest.mark.parametrize(
    "text",
    [
        "# System calls: poll, read",
        "# System calls: poll read.",
        "# System calls: socket(af_unix).",
        "# System calls: Poll.",
    ],
)
def test_comment_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(NoList):
        declared(text)


def test_condition_in_one_place_only_is_refused() -> None:
    texts = ["# System calls: socket(AF_UNIX).\n", "# System calls: socket.\n"]
    with pytest.raises(NoList, match="socket"):
        joined(texts)
    assert joined([texts[0], "# System calls: socket(AF_INET).\n"]) == {
        "socket": {"AF_UNIX", "AF_INET"}
    }
