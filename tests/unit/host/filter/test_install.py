# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls: what it lets pass, what it forbids, what it logs.

A filter cannot be taken off again, so each test has it in a separate process.
"""

import mmap
import os
import platform
import signal
import subprocess
import sys
import textwrap

import pytest

from vhostpci_host.errors import HostError
from vhostpci_host.filter import install, libseccomp
from vhostpci_host.filter.install import Choice, Filter, filter_calls

HEAD = """
import ctypes, fcntl, mmap, os, resource, signal, socket, sys, threading
from vhostpci_host.filter.install import Choice, filter_calls
libc = ctypes.CDLL(None, use_errno=True)
filter_calls(Choice(sys.argv[1]))
"""
X86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="only x86-64 has these interfaces"
)


def under_filter(choice: Choice, text: str) -> subprocess.CompletedProcess[str]:
    """Run Python code under the filter."""
    code = HEAD + textwrap.dedent(text)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, choice]
    return subprocess.run(
        command, capture_output=True, text=True, env=environ, timeout=120
    )


FORBIDDEN = {
    "socket of the internet": "socket.socket(socket.AF_INET)",
    "netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "pair that is not of Unix": "libc.socketpair(2, 1, 0, (ctypes.c_int * 2)())",
    "program": "os.execv('/bin/true', ['true'])",
    "new process": "os.fork()",
    "program by posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "trace": "libc.ptrace(0, 0, 0, 0)",
    "memory of another process": "libc.process_vm_readv(1, 0, 0, 0, 0, 0)",
    "namespace": "libc.unshare(0x10000000)",
    "mount": "libc.mount(b'a', b'/', b'tmpfs', 0, 0)",
    "user": "os.setuid(0)",
    "other prctl": "libc.prctl(4, 1, 0, 0, 0)",
    "personality": "libc.personality(0)",
    "signal to another process": "os.kill(os.getppid(), signal.SIGURG)",
    "signal to another thread group": "libc.syscall(234, 1, 1, 0)",
    "limit of another process": "resource.prlimit(1, resource.RLIMIT_CORE)",
    "keystrokes": "fcntl.ioctl(0, 0x5412, b'x')",
    "owner of a file's signals": "fcntl.fcntl(0, fcntl.F_SETOWN, 1)",
    "in a thread": "t = threading.Thread(target=os.fork); t.start(); t.join()",
    "ring of the kernel": "libc.syscall(425, 1, 0)",
    "key": "libc.syscall(250, 0, 0, 0, 0, 0)",
}


@pytest.mark.parametrize("text", FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbidden_call_ends_the_process(text: str) -> None:
    assert under_filter(Choice.KILL, text).returncode == -signal.SIGSYS


def test_threads_that_run_already_are_filtered_too() -> None:
    code = HEAD.replace(
        "filter_calls(Choice(sys.argv[1]))",
        """
go = threading.Event()
def late():
    go.wait()
    socket.socket(socket.AF_INET)
thread = threading.Thread(target=late)
thread.start()
filter_calls(Choice(sys.argv[1]))
go.set()
thread.join()
""",
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, "kill"], env=environ)
    assert done.returncode == -signal.SIGSYS


@X86_64
@pytest.mark.parametrize(
    "call",
    [
        # x32: the number of getpid() with that interface's bit.
        "libc.syscall(0x40000000 | 39)",
        # int 0x80, the interface of 32 bits: getpid() is number 20 there.
        "call(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')",
    ],
    ids=["x32", "32 bits"],
)
def test_interface_of_another_architecture_is_refused(call: str) -> None:
    """Its numbers mean other calls, so it would be a way around the list."""
    prepare = """
page = mmap.mmap(-1, 4096, prot=7)
def call(code):
    page[:len(code)] = code
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
    code = HEAD.replace("filter_calls(Ch", prepare + "filter_calls(Ch") + call
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, "kill"], env=environ)
    assert done.returncode == -signal.SIGSYS


def test_executable_memory_is_an_error() -> None:
    done = under_filter(
        Choice.KILL,
        """
        for prot in (4, 7):
            try:
                mmap.mmap(-1, 4096, prot=prot)
            except PermissionError as error:
                print(error)
        page = mmap.mmap(-1, 4096)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        print(libc.mprotect(ctypes.c_void_p(address), 4096, 5), ctypes.get_errno())
        """,
    )
    refused = "[Errno 13] Permission denied"
    assert done.stdout.splitlines() == [refused, refused, "-1 13"], done.stderr
    assert mmap.PROT_EXEC == 4


def test_what_a_daemon_does_is_allowed() -> None:
    done = under_filter(
        Choice.KILL,
        """
        import tempfile
        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
        a, b = socket.socketpair()
        a.sendmsg([b"text"], [(1, 1, b"\\0\\0\\0\\0")])
        print(b.recvmsg(9, 100)[0])
        os.kill(os.getpid(), 0)
        with open("/proc/self/status") as status:
            print(*(line for line in status if line.startswith("Seccomp:")))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["thread", "b'text'", "Seccomp:", "2"]


def test_log_lets_a_forbidden_call_pass() -> None:
    """That the kernel writes it down is for its administrator to see."""
    text = """
    socket.socket(socket.AF_INET).close()
    with open("/proc/self/status") as status:
        print(*(line for line in status if line.startswith("Seccomp:")))
    """
    done = under_filter(Choice.LOG, text)
    assert (done.returncode, done.stdout.split()) == (0, ["Seccomp:", "2"])


def test_none_filters_nothing() -> None:
    assert filter_calls(Choice.NONE) == Filter(Choice.NONE)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libseccomp, "LIBRARY", "libno-such-library.so.2")


@pytest.mark.parametrize("choice", [Choice.KILL, Choice.LOG])
def test_filter_without_the_library_is_an_error(
    choice: Choice, no_library: None
) -> None:
    with pytest.raises(HostError, match=rf"libseccomp2\).* --seccomp {choice}"):
        filter_calls(choice)


def test_auto_without_the_library_filters_nothing_and_says_so(
    no_library: None, caplog: pytest.LogCaptureFixture
) -> None:
    found = filter_calls(Choice.AUTO)
    assert found.mode is Choice.NONE
    assert found.problem is not None
    assert "libseccomp2" in found.problem
    assert found.problem in caplog.text


def test_kernel_that_takes_no_filter_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise libseccomp.Unavailable("the kernel does not take it: Invalid argument")

    monkeypatch.setattr(install, "install", refuse)
    with pytest.raises(HostError, match="Invalid argument"):
        filter_calls(Choice.KILL)
