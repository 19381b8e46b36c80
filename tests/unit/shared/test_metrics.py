# SPDX-License-Identifier: Apache-2.0
"""Metrics: the text is Prometheus', a file is whole, and a server says what fails."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import threads
from tests.fakes.listening import before_listen
from tests.waiting import TIMEOUT
from vhostpci_shared.metrics import COUNTER, Family, render, write_file
from vhostpci_shared.metrics_server import (
    CLIENTS,
    BadAddress,
    MetricsServer,
    NotServed,
    parse_address,
    remove_dead,
    serve,
)


@given(value=st.integers(0, 2**53), label=st.text(), help=st.text())
def test_any_text_survives_prometheus_parser(value: int, label: str, help: str) -> None:
    family = Family("vhostpci_x", help, COUNTER)
    family.add(value, device=label)
    text = render([family, Family("vhostpci_empty", "no value")])
    # The parser splits at more than the format's only line end; "\n" is escaped.
    if any(one in label + help for one in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
        return
    (found,) = text_string_to_metric_families(text)
    (sample,) = found.samples
    assert (sample.name, sample.value) == ("vhostpci_x_total", value)
    assert sample.labels == {"device": label}
    assert found.type == "counter"


def test_truth_is_a_number() -> None:
    family = Family("vhostpci_x", "1: yes.")
    family.add(True)
    assert render([family]).splitlines()[-1] == "vhostpci_x 1"


def test_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    write_file(path, "old\n")
    before = path.open()
    with before:
        write_file(path, "new\n")
        assert before.read() == "old\n"
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_written_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.prom"
    write_file(path, "old\n")

    def fill_up(new: Path, _text: str, encoding: str) -> None:
        new.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_up)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9700", ("127.0.0.1", 9700)),
        ("[::1]:9700", ("::1", 9700)),
        ("unix:/run/x", "/run/x"),
    ],
)
def test_address_is_parsed(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9700", ":9700", "127.0.0.1", "127.0.0.1:x", "a:65536", "unix:"]
)
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(BadAddress, match="write "):
        parse_address(text)


@contextmanager
def served(path: Path, text: str | Exception) -> Iterator[None]:
    def collect() -> str:
        if isinstance(text, Exception):
            raise text
        return text

    with MetricsServer(str(path), collect) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def get(path: Path, target: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("x")
    with closing(connection), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(str(path))
        connection.sock = sock
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_metrics_are_served_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served(path, "a 1\n"):
        assert get(path, "/metrics") == (200, "a 1\n")
        assert get(path, "/etc/passwd")[0] == 404


def test_scrape_that_fails_says_why_and_the_next_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served(path, ValueError("the daemon hangs")):
        for _ in range(2):
            status, text = get(path, "/metrics")
            assert status == 500
            assert "the daemon hangs" in text


def test_clients_without_a_thread_leave_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.sock"
    with served(path, "up 1\n"):
        with monkeypatch.context() as full:
            threads.allow_none(full)
            for _ in range(CLIENTS):
                with pytest.raises(ConnectionError):
                    get(path, "/metrics")
        assert get(path, "/metrics") == (200, "up 1\n")


def test_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(NotServed, match=f"{address}: Address already in use"):
            serve(address, str)


def test_socket_of_a_living_program_stays_and_a_dead_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(NotServed, match="Address already in use"):
            serve(f"unix:{path}", str)
    with served(path, "a 1\n"):
        assert get(path, "/metrics")[0] == 200


def test_server_that_is_starting_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    before_listen(monkeypatch, lambda: remove_dead(path))
    with served(path, "a 1\n"):
        assert get(path, "/metrics")[0] == 200
    assert list(tmp_path.iterdir()) == [path]


def test_file_in_the_place_of_a_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(NotServed):
        serve(f"unix:{path}", str)
    assert path.read_text() == "mine"
