# SPDX-License-Identifier: Apache-2.0
"""The command line: what it takes, what it prints, and its exit status."""

import json
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.fakes.uevents import FakeEvents
from vhostpci_guest import __version__, status_socket
from vhostpci_guest.cli import run
from vhostpci_guest.cli.main import main, parser
from vhostpci_guest.config import options
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import position as pci_position
from vhostpci_guest.pci import search, watch
from vhostpci_guest.pci.sysfs_device import PciDevice
from vhostpci_guest.pci.uevents import Uevents
from vhostpci_guest.tap.requests import LocalRequests

Say = pytest.CaptureFixture[str]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """A machine whose PCI devices are those that the test plugs in."""
    system = FakeSystem(tmp_path / "root", "uio_pci_generic")

    def find() -> list[PciDevice]:
        names = (system.sys / "bus/pci/devices").iterdir()
        return real_find(system, [path.name for path in names])

    real_find: Callable[..., list[PciDevice]] = search.find
    monkeypatch.setattr(search, "find", find)
    for module in (search, watch):
        monkeypatch.setattr(module, "System", lambda: system)
    monkeypatch.setattr(run, "Uevents", lambda: FakeEvents(system))
    monkeypatch.setattr(status_socket, "ask", lambda: ([], []))
    return system


@pytest.fixture
def no_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalRequests, "check_node", lambda self: None)


def test_version_is_printed(capsys: Say) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"vhostpci-guest {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run", "--device", "x"],
        ["run", "--device", "00:05.0", "--socket", "s"],
        ["run", "--bind", "magic"],
        ["run", "--tap", "a/b"],
        ["run", "--cpus", "x"],
        ["run", "--cpus", "4096"],
        ["run", "--poll-us", "-1"],
        ["run", "--poll-us", "1001"],
        ["run", "--address", "10.0.0.1"],
        ["run", "--tap", "{foo}"],
        ["run", "--tap", "vp{n"],
        ["run", "--bridge", "a/b"],
        ["run", "--mac", "01:00:5e:00:00:01"],
        ["run", "--mtu", "12"],
    ],
)
def test_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_refused_argument_says_why(capsys: Say) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--address", "10.0.0.1"])
    said = capsys.readouterr().err
    assert "prefix length" in said
    assert said.endswith("; see vhostpci-guest run --help [G139]\n")


def test_address_may_be_given_more_than_once() -> None:
    words = ["run", "--address", "10.0.0.1/24", "--address", "fd00::1/64"]
    arguments = parser(words).parse_args(words)
    assert list(map(str, arguments.address)) == ["10.0.0.1/24", "fd00::1/64"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--bridge", "br0", "--address", "10.0.0.1/24"], "ip address add"),
        (["--mac", "02:00:00:00:00:01", "--mac", "02:00:00:00:00:02"], "NAME=MAC"),
    ],
)
def test_options_that_do_not_fit_each_other_are_status_2(
    arguments: list[str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["run", *arguments]) == 2
    assert why in caplog.text


def test_interface_that_is_no_bridge_is_an_error_before_anything_is_bound(
    system: FakeSystem, no_tap: None, caplog: pytest.LogCaptureFixture
) -> None:
    system.plug("0000:00:05.0")
    assert main(["run", "--bridge", "lo"]) == 1
    assert "lo is no bridge" in caplog.text
    assert system.writes == []


def run_for_a_while(*arguments: str) -> int:
    """Run the agent, and end it as systemd does."""
    end = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    end.start()
    try:
        return main(["run", *arguments])
    finally:
        end.join()


def test_agent_without_devices_logs_that_it_waits(
    system: FakeSystem, no_tap: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_for_a_while() == 0
    assert "no ivshmem device yet: waiting for one" in caplog.text


def test_all_devices_are_served_at_once(
    system: FakeSystem, no_tap: None, caplog: pytest.LogCaptureFixture
) -> None:
    system.plug("0000:00:05.0")
    system.plug("0000:00:06.0")
    assert run_for_a_while("--bind", "sysfs") == 0
    for address in ("0000:00:05.0", "0000:00:06.0"):
        assert f"{address}: no vhostpci metadata" in caplog.text
        path = system.sys / "bus/pci/devices" / address / "enable"
        assert path.read_text() == "0\n"


def test_only_device_without_metadata_is_status_1(
    system: FakeSystem, no_tap: None, caplog: pytest.LogCaptureFixture
) -> None:
    system.plug("0000:00:05.0")
    assert main(["run", "--device", "00:05.0", "--bind", "sysfs"]) == 1
    assert "no vhostpci metadata" in caplog.text


def test_no_device_at_an_address_is_status_1(
    system: FakeSystem, no_tap: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["run", "--device", "00:05.0"]) == 1
    assert "no PCI device 0000:00:05.0" in caplog.text


def test_device_in_use_is_status_1(
    system: FakeSystem, no_tap: None, caplog: pytest.LogCaptureFixture
) -> None:
    system.plug("0000:00:05.0", driver="ivshmem-net")
    assert main(["run", "--device", "00:05.0"]) == 1
    assert "bound to ivshmem-net" in caplog.text


def test_error_without_libudev_says_what_to_install(
    system: FakeSystem,
    no_tap: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    monkeypatch.setattr(run, "Uevents", Uevents)
    assert main(["run"]) == 1
    assert "install libudev and pyudev" in caplog.text


def test_missing_tun_is_an_error_before_anything_is_bound(
    system: FakeSystem,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_: LocalRequests) -> None:
        raise Unusable("no /dev/net/tun: modprobe tun")

    monkeypatch.setattr(LocalRequests, "check_node", refuse)
    system.plug("0000:00:05.0")
    assert main(["run"]) == 1
    assert "modprobe tun" in caplog.text
    assert system.writes == []


def test_devices_lists_how_each_could_be_bound(system: FakeSystem, capsys: Say) -> None:
    system.plug("0000:00:05.0", vectors=3)
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "0000:00:05.0  1 MiB, 3 vectors, IVPosition 0, driver none" in out
    assert "kmod   interrupts  cached    no kernel module uio_vhostpci" in out
    assert "vfio   interrupts  uncached  the slave VM has no vIOMMU" in out
    assert "uio    polling     uncached  possible" in out
    assert "better: kmod, for interrupts and a cached window" in out


def have_agent(
    monkeypatch: pytest.MonkeyPatch, device: str, *windows: dict[str, Any]
) -> None:
    """Have an agent that serves a device, and says so."""
    links = [{"device": device, "pid": 77, "windows": list(windows)}]
    monkeypatch.setattr(status_socket, "ask", lambda: (links, []))


def test_devices_names_the_driver_or_agent_that_has_a_device(
    system: FakeSystem, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.plug("0000:00:05.0", driver="ivshmem-net")
    system.plug("0000:00:06.0", driver="uio_pci_generic")
    have_agent(monkeypatch, "0000:00:06.0")
    main(["devices"])
    out = capsys.readouterr().out
    assert "bound to ivshmem-net" in out
    assert "served by vhostpci-guest (pid 77)" in out


def test_devices_marks_windows(
    system: FakeSystem, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot, position in (("5", 0), ("6", 4711), ("7", 4712)):
        path = system.plug(f"0000:00:0{slot}.0")
        (path / "resource0").write_bytes(struct.pack("<8xI244x", position))
    have_agent(
        *(monkeypatch, "0000:00:05.0"),
        {"id": 4711, "device": "0000:00:06.0", "size": 4096},
        {"id": 4712, "device": None, "size": None},  # a window of another device
    )
    main(["devices"])
    out = capsys.readouterr().out
    assert "IVPosition 4711" in out
    assert "window 4711 of 0000:00:05.0" in out
    assert "window 4712 of another device" in out
    assert "window 0" not in out


def test_devices_has_the_position_that_only_the_agent_can_read(
    system: FakeSystem, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process only may open the module's node, and so read the registers."""

    def busy(device: PciDevice) -> int:
        raise Unusable(f"{device.address} is in use by vhostpci-guest (pid 77)")

    monkeypatch.setattr(pci_position, "read_position", busy)
    for slot in "567":
        system.plug(f"0000:00:0{slot}.0", driver="uio_vhostpci")
    window = {"id": 4711, "device": "0000:00:06.0", "size": 4096}
    have_agent(monkeypatch, "0000:00:05.0", window)
    main(["devices"])
    out = capsys.readouterr().out
    assert "0000:00:05.0  1 MiB, 3 vectors, IVPosition 0, " in out
    assert "0000:00:06.0  1 MiB, 3 vectors, IVPosition 4711, " in out
    assert "window 4711 of 0000:00:05.0" in out
    assert "0000:00:07.0  1 MiB, 3 vectors, driver" in out


def test_devices_changes_nothing(system: FakeSystem, capsys: Say) -> None:
    system.modules = ("uio_vhostpci",)
    system.plug("0000:00:05.0")
    system.plug("0000:00:06.0", driver="uio_vhostpci")
    main(["devices"])
    out = capsys.readouterr().out
    assert out.count("kmod   interrupts  cached    possible") == 2
    assert "better" not in out
    assert system.writes == []


def test_devices_marks_a_window_below_4_gib_as_uncached(
    system: FakeSystem, capsys: Say
) -> None:
    system.low = True
    system.plug("0000:00:05.0", driver="uio_vhostpci")
    main(["devices"])
    out = capsys.readouterr().out
    assert "kmod   interrupts  uncached (BAR 2 below 4 GiB)  possible" in out
    assert "better: cached, with BAR 2 above 4 GiB: firmware puts" in out


def test_devices_recommends_nothing_over_vfio_where_no_window_is_cached(
    system: FakeSystem, capsys: Say
) -> None:
    system.low = True
    system.modules = ("vfio-pci",)
    system.plug("0000:00:05.0", group="3")
    main(["devices"])
    assert "better" not in capsys.readouterr().out


def test_devices_as_json(system: FakeSystem, capsys: Say) -> None:
    system.plug("0000:00:05.0", vectors=3)
    main(["devices", "-j"])
    (device,) = json.loads(capsys.readouterr().out)
    assert device["address"] == "0000:00:05.0"
    assert device["window"] == 1 << 20
    assert device["bindings"]["uio"] == {
        "interrupts": False,
        "cached": False,
        "caching": "uncached",
        "why_not": None,
    }
    assert device["bindings"]["kmod"]["cached"]
    assert device["better"].startswith("kmod, for interrupts")


def test_devices_without_a_device_is_status_0(system: FakeSystem, capsys: Say) -> None:
    assert main(["devices"]) == 0
    assert capsys.readouterr().out == "no ivshmem device\n"


LINK: dict[str, Any] = {
    "pid": 77,
    "device": "0000:00:05.0",
    "name": "net0",
    "binding": "vfio",
    "interrupts": True,
    "state": "failed",
    "message": "region 3 is too long",
    "daemon": "alive",
    "master": True,
    "tap": "vp0",
    "uid": 65534,
    "capabilities": [],
    "bridge": "br0",
    "carrier": False,
    "speed": {"mbps": 91.2, "own_mbps": 12345.6, "slow": True},
    "windows": [
        {
            "id": 4711,
            "device": "0000:00:06.0",
            "size": 4096,
            "speed": {"mbps": 12000.0, "own_mbps": 12345.6, "slow": False},
        },
        {"id": 4712, "device": None, "size": None, "speed": None},
        {"id": 4713, "device": "0000:00:07.0", "size": 100, "speed": None},
    ],
    "rings": [
        {
            "ring": 0,
            "state": "broken",
            "reason": "a chain loops",
            "index": 5,
            "packets": 4,
            "octets": 400,
            "drops": 1,
            "kicks": 2,
            "calls": 3,
            "method": "",
            "method_reason": "",
        },
        {
            "ring": 1,
            "state": "running",
            "reason": "",
            "index": 6,
            "packets": 7,
            "octets": 700,
            "drops": 0,
            "kicks": 8,
            "calls": 9,
            "method": "writev",
            "method_reason": "this kernel has no io_uring",
        },
    ],
}


def test_status_is_printed_for_people(
    capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda: ([LINK], []))
    assert main(["status"]) == 0
    assert "region 3 is too long\n" in capsys.readouterr().out


def test_status_as_json(capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda: ([LINK], []))
    main(["status", "-j"])
    assert json.loads(capsys.readouterr().out) == [LINK]


def test_status_without_right_to_ask_is_status_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/run/vhostpci-guest")

    monkeypatch.setattr(status_socket, "ask", refuse)
    assert main(["status"]) == 1
    assert "Permission denied" in caplog.text


def test_file_stands_in_place_of_all_other_options(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "guest.toml"
    file.touch()
    arguments = ["--config", str(file), "--tap", "x", "--device", "00:05.0"]
    assert main(["run", *arguments]) == 2
    assert "with --config leave out --device, --tap" in caplog.text


@pytest.mark.parametrize("command", [["check-config"], ["run", "--config"]])
def test_each_mistake_of_a_file_is_a_line_with_status_1(
    command: list[str], tmp_path: Path, capsys: Say
) -> None:
    file = tmp_path / "guest.toml"
    file.write_text("[device.a]\nmtu = 1\nnmae = 3\n")
    assert main([*command, str(file)]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in printed] == [f"{file}:2:", f"{file}:3:"]


def test_file_without_mistakes_is_counted(tmp_path: Path, capsys: Say) -> None:
    file = tmp_path / "guest.toml"
    file.write_text("[device.a]\nmtu = 1500\n")
    assert main(["check-config", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 1 device, no errors\n"


def test_agent_without_options_takes_the_file_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "guest.toml"
    monkeypatch.setattr(options, "DEFAULT_FILE", file)

    def taken(*words: str) -> Path | None:
        argv = ["run", *words]
        return run.file_of(parser(argv).parse_args(argv))

    assert taken() is None
    file.touch()
    assert taken() == file
    assert taken("--mtu", "1500") is None
    assert taken("--config", "/other") == Path("/other")
