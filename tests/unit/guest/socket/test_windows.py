# SPDX-License-Identifier: Apache-2.0
"""The windows of a slave process, each of which comes over a window socket."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.clock import Clock
from tests.fakes.ivshmem_server import SIZE, FakeServer
from vhostpci_guest.interfaces import Window
from vhostpci_guest.socket.client import HANDSHAKE, RETRY
from vhostpci_guest.socket.source import SocketSource
from vhostpci_guest.socket.windows import SOON, SocketWindows
from vhostpci_shared import ivshmem

W, V = 4711, 4712


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def windows(tmp_path: Path, clock: Clock) -> Iterator[SocketWindows]:
    windows = SocketWindows(tmp_path / "net0.ivshmem", clock)
    yield windows
    windows.want(set())


Serve = Callable[[int], FakeServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Makes the daemon's server of a window."""
    with ExitStack() as undo:

        def serve(number: int) -> FakeServer:
            path = tmp_path / f"net0.ivshmem.{number}"
            path.unlink(missing_ok=True)
            server = FakeServer(path, window=number)
            undo.callback(server.close)
            return server

        yield serve


def show(windows: SocketWindows, server: FakeServer) -> None:
    """Let the daemon show the window that is wanted."""
    windows.look()
    server.accept()
    server.greet_window()
    windows.look()


def opened(windows: SocketWindows, server: FakeServer) -> Window:
    """Want window W, let the daemon show it, and return it."""
    windows.want({W})
    show(windows, server)
    window = windows.find(W)
    assert window is not None
    return window


def test_wanted_window_is_opened(windows: SocketWindows, serve: Serve) -> None:
    server = serve(W)
    windows.want({W})
    assert windows.interval == 0
    window = opened(windows, server)
    assert window.size == SIZE
    window.view[7] = 42
    assert server.mapping.view[7] == 42
    assert windows.interval is None


def test_window_that_is_not_wanted_is_not_opened(
    windows: SocketWindows, serve: Serve
) -> None:
    serve(W)
    windows.look()
    assert windows.find(W) is None
    assert list(windows.fds()) == []
    assert windows.interval is None


def test_missing_window_is_tried_again_after_ever_longer_pauses(
    windows: SocketWindows,
    serve: Serve,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    windows.want({W})
    pauses = []
    for _ in range(8):
        windows.look()
        pause = windows.interval
        assert pause is not None
        pauses.append(pause)
        clock.seconds += pause
    assert pauses[0] == pytest.approx(SOON)
    assert pauses[-1] == pytest.approx(RETRY)
    assert caplog.text.count("net0.ivshmem.4711") == 1
    show(windows, serve(W))
    assert windows.find(W) is not None


def test_window_that_is_no_longer_wanted_is_closed(
    windows: SocketWindows, serve: Serve
) -> None:
    servers = {number: serve(number) for number in (W, V)}
    windows.want({W, V})
    windows.look()
    for server in servers.values():
        server.accept()
        server.greet_window()
    windows.look()
    kept = windows.find(V)
    windows.want({V})
    assert servers[W].hung_up()
    assert not servers[V].hung_up()
    assert windows.find(W) is None
    assert windows.find(V) is kept


def test_window_that_the_daemon_closes_stays_mapped_until_it_is_released(
    windows: SocketWindows, serve: Serve
) -> None:
    server = serve(W)
    window = opened(windows, server)
    server.hang_up()
    windows.look()
    assert windows.find(W) is None
    assert list(windows.fds()) == []
    assert window.view[0] == 0
    windows.want({W})
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]


def test_window_that_is_opened_again_is_a_new_window(
    windows: SocketWindows, serve: Serve, clock: Clock
) -> None:
    server = serve(W)
    first = opened(windows, server)
    server.hang_up()
    windows.look()
    clock.seconds += RETRY
    assert opened(windows, server) is not first


def test_server_that_shows_another_window_is_refused(
    windows: SocketWindows, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(W)
    server.window = V
    windows.want({W})
    show(windows, server)
    assert windows.find(W) is None
    assert "net0.ivshmem.4711: the server shows window 4712" in caplog.text
    assert server.hung_up()


def test_server_that_refuses_us_is_tried_again(
    windows: SocketWindows, serve: Serve, clock: Clock
) -> None:
    server = serve(W)
    windows.want({W})
    windows.look()
    server.accept()
    server.say(ivshmem.REFUSED)
    windows.look()
    assert windows.find(W) is None
    clock.seconds += RETRY
    show(windows, server)
    assert windows.find(W) is not None


def test_server_that_is_silent_is_tried_again(
    windows: SocketWindows, serve: Serve, clock: Clock
) -> None:
    server = serve(W)
    windows.want({W})
    windows.look()
    server.accept()
    clock.seconds += HANDSHAKE
    windows.look()
    assert server.hung_up()


def test_window_whose_file_is_truncated_is_opened_again(
    windows: SocketWindows, serve: Serve, clock: Clock
) -> None:
    server = serve(W)
    window = opened(windows, server)
    os.ftruncate(server.memory, SIZE // 2)
    assert window.view[SIZE - 1] == 0  # a read past the end finds out, as a worker does
    windows.look()
    assert windows.find(W) is None
    windows.want({W})
    clock.seconds += RETRY
    assert opened(windows, server).size == SIZE // 2


def test_source_opens_windows_beside_its_socket(
    tmp_path: Path, serve: Serve, clock: Clock
) -> None:
    device_server = FakeServer(tmp_path / "net0.ivshmem")
    source = SocketSource(tmp_path / "net0.ivshmem", clock)
    source.look()
    device_server.accept()
    device_server.greet()
    source.look()
    (device,) = source.devices()
    windows = source.windows(device)
    windows.want({W})
    assert source.interval == 0
    server = serve(W)
    source.look()
    server.accept()
    server.greet_window()
    before = set(source.fds())
    source.look()
    assert windows.find(W) is not None
    assert set(source.fds()) > before
    assert source.interval is None
    windows.want(set())
    device.close()
    device_server.close()
