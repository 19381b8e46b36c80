# SPDX-License-Identifier: Apache-2.0
"""The command line: QEMU's conventions, and errors of one line."""

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import vhostpci_host
from vhostpci_host.cli.capabilities import with_command
from vhostpci_host.cli.main import main
from vhostpci_host.cli.qemu_args import mac
from vhostpci_shared.barriers import NoBarriers

# This process must not become the keeper.
# Neither another process, nor a filter that this process would keep.
NO_KEEPER = ("--keeper", "none", "--seccomp", "none")


def failure(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run the command, which must fail with one line."""
    assert main([str(word) for word in argv]) == 1
    text = capsys.readouterr().err
    assert text.startswith("vhostpci-host: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    "argv",
    [
        ["--print-capabilities"],
        ["run", "--print-capabilities"],
        ["run", "--socket-path", "/nowhere", "--print-capabilities", "nonsense"],
    ],
    ids=" ".join,
)
def test_capabilities_are_printed_despite_other_arguments(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"type": "net", "features": []}


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--socket-path", "/run/vm 1.sock"], ["run", "vm-1", "--mode", "attach"]),
        (["--socket-path=/run/_a.b.sock"], ["run", "a.b", "--mode", "attach"]),
        (["--fd=7"], ["run", "fd7", "--mode", "attach"]),
        (["-v", "--fd", "7", "--memory", "1G"], ["run", "fd7"]),
    ],
)
def test_tool_that_names_no_command_has_a_device_served(
    words: list[str], more: list[str]
) -> None:
    assert with_command(words) == [*more, *words]


@pytest.mark.parametrize(
    "words",
    [[], ["--version"], ["status"], ["run", "a", "--fd", "3"], ["-v", "run", "--fd=3"]],
)
def test_command_line_that_has_a_command_stays(words: list[str]) -> None:
    assert with_command(words) == words


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"vhostpci-host {vhostpci_host.__version__}\n"


@pytest.mark.parametrize("argv", [["web", "--memory", "1G"], ["--config", "FILE"]])
def test_run_needs_a_machine_that_keeps_the_order_of_stores(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
) -> None:
    def refuse() -> None:
        raise NoBarriers("this machine is aarch64, install a C compiler")

    monkeypatch.setattr("vhostpci_host.cli.serve.installed_barriers", refuse)
    assert "this machine is aarch64" in failure(capsys, "run", *argv)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "required: COMMAND"),
        (["run", "a", "--mode", "dance"], "mode 'dance': write arena or attach"),
        (["run", "a/b", "--memory", "1G"], "name 'a/b': use 1 to 64 letters"),
        (["run", "a", "--memory", "1"], "multiple of 1M"),
        (["run", "a", "--memory", "1G", "--queue-pairs", "99"], "from 1 to 32"),
        (["run", "a", "--memory", "1G", "--socket-mode", "x"], "octal digits"),
        (["run", "a", "--memory-dir", ""], "memory-dir '': write a path"),
        (["qemu-args", "a"], "--role"),
        (["add"], "NAME"),
        (["check-config"], "FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_are_named_with_status_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["run"], "give a device's NAME, or --config FILE"),
        (["run", "a"], "memory is missing"),
        (["run", "a", "--mode", "attach", "--memory", "1G"], "leave it out"),
        (["run", "a", "--config", "/x", "--memory", "1G"], "out --memory, NAME"),
        (
            ["run", "a", "--memory", "1M", "--fd", "3", "--socket-path", "/x"],
            "--fd and --socket-path exclude each other",
        ),
        (
            ["run", "a", "--memory", "1M", "--fd", "3", "--connect", "/x"],
            "--fd and --connect exclude each other",
        ),
        *(
            (
                f"{command} a --memory 1G --confined --queue-pairs 2{more}".split(),
                "queue-pairs 2 of a confined device: several need the card's control",
            )
            for command, more in (("run", ""), ("qemu-args", " --role master"))
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_contradicting_arguments_are_reported_with_status_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], text: str
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


def test_group_that_does_not_exist_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["run", "a", "--memory", "1M", "--socket-group", "no-such-group"]
    assert "socket-group 'no-such-group': there is no such" in failure(capsys, *argv)


@pytest.mark.parametrize("number", [0, 987654])
def test_fd_that_is_no_socket_is_named(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert f"--fd {number}" in failure(
        capsys, "run", "a", "--memory", "1M", "--fd", number
    )


def test_file_in_a_sockets_place_is_named_and_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stray = tmp_path / "a.ivshmem"
    stray.write_text("mine")
    dirs = ["--run-dir", tmp_path, "--memory-dir", tmp_path / "memory"]
    text = failure(capsys, *("run", "a", "--memory", "1M"), *NO_KEEPER, *dirs)
    assert f"{stray} is there and is no socket" in text
    assert stray.read_text() == "mine"
    assert list((tmp_path / "memory").iterdir()) == []
    assert not (tmp_path / "a.control").exists()


def test_run_dir_that_cannot_be_made_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    argv = ["run", "a", "--memory", "1M", "--run-dir", tmp_path / "file" / "sub"]
    assert "cannot make" in failure(capsys, *argv, *NO_KEEPER)


def test_qemu_args_need_a_daemon_or_the_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["qemu-args", "a", "--role", "slave", "--run-dir", tmp_path]
    assert "or give --memory" in failure(capsys, *argv)
    assert main([str(word) for word in (*argv, "--memory", "1G")]) == 0
    out = capsys.readouterr()
    assert "-device ivshmem-doorbell" in out.out
    assert "intel_iommu=on" in out.err


def test_kernel_args_are_the_words_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["qemu-args", "a", "--run-dir", str(tmp_path), "--memory", "4G"]
    words = [*argv, "--confined", "--kernel-args", "--role"]
    assert main([*words, "master"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("numa=off nokaslr swiotlb=32768,force cma=16M@")
    assert not out.err
    assert main([*words, "slave"]) == 2
    assert "the slave's kernel needs no words" in capsys.readouterr().err
    ordinary = [*argv, "--kernel-args", "--role", "master"]
    assert "give --confined" in failure(capsys, *ordinary)


@pytest.mark.parametrize(
    "command", ["qemu-args a --role master", "xml a --role master", "master-check a"]
)
@pytest.mark.parametrize(
    ("machine", "size", "told", "code"),
    [
        ("q35", "300M", "with a shared region of 128M: give it 512M or more", "H151"),
        ("virt", "4G", "with a shared region of 128M: give it 6400M or more", "H152"),
    ],
)
def test_memory_that_no_confined_master_can_have_is_wrong_usage(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    *,
    command: str,
    machine: str,
    size: str,
    told: str,
    code: str,
) -> None:
    argv = [*command.split(), "--run-dir", str(tmp_path), "--machine", machine]
    assert main([*argv, "--mode", "attach", "--memory", size, "--confined"]) == 2
    assert f"on {machine} {told} [{code}]" in capsys.readouterr().err


def test_arguments_of_a_virt_are_for_the_qemu_that_has_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = ["qemu-args", "a", "--run-dir", str(tmp_path), "--memory", "6400M"]
    argv += ["--confined", "--machine", "virt", "--role", "master"]
    assert main(argv) == 0
    assert "no qemu-system-aarch64 is in PATH" in capsys.readouterr().err


def test_hint_of_a_confined_master_has_its_kernels_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["qemu-args", "a", "--run-dir", str(tmp_path), "--memory", "4G"]
    assert main([*argv, "--confined", "16M", "--role", "master"]) == 0
    out = capsys.readouterr()
    assert "swiotlb=8192,force" in out.err
    assert "at most 64 processors" in out.err


SIZES = "rx_queue_size, tx_queue_size"


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        ("16M", "of 256 entries, as this card has: 32M"),
        ("32M", f"of 1024 entries, if you give it such ({SIZES}): 128M"),
        ("64M", f"of 1024 entries, if you give it such ({SIZES}): 128M"),
        ("128M", ""),
    ],
)
def test_hint_of_a_confined_master_says_for_which_rings_its_pool_is_small(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pool: str, told: str
) -> None:
    argv = ["qemu-args", "a", "--run-dir", str(tmp_path), "--memory", "4G"]
    assert main([*argv, "--confined", pool, "--role", "master"]) == 0
    found = " ".join(capsys.readouterr().err.replace("#", " ").split())
    rings, _, enough = told.partition(": ")
    small = f"A bounce pool of {pool} may be too small for rings {rings}: when it is"
    assert (small in found) is bool(told)
    assert (f"{enough} are enough (--confined {enough})" in found) is bool(told)
    assert ("too small" in found) is bool(told)


def test_packed_rings_of_a_confined_master_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["qemu-args", "a", "--run-dir", str(tmp_path), "--memory", "4G"]
    told = failure(capsys, *argv, "--role", "master", "--packed", "--confined")
    assert "leave out --packed [H154]" in told


def fake_qemu(directory: Path, version: str) -> Path:
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_qemu_args_are_those_of_the_qemu_that_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, json: list[str]
) -> None:
    argv = ["qemu-args", "a", "--role", "master", "--memory", "1G", *json]
    old, new = "7.2.22", "11.1.3"
    assert main([*argv, "--tcg", "--qemu", str(fake_qemu(tmp_path, old))]) == 0
    out = capsys.readouterr()
    assert "reconnect=1" in out.out
    assert "vectors=0" in out.out
    assert "is QEMU 7.2" in out.err
    assert main([*argv, "--tcg", "--qemu", str(fake_qemu(tmp_path, new))]) == 0
    out = capsys.readouterr()
    assert "reconnect-ms=1000" in out.out
    assert "vectors=" not in out.out
    assert main([*argv, "--qemu", "nothing"]) == 1


def test_vectors_that_are_given_are_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["qemu-args", "a", "--role", "master", "--memory", "1G", "--vectors", "5"]
    assert main([*argv, "--tcg", "--qemu", str(fake_qemu(tmp_path, "7.2"))]) == 0
    assert "vectors=5" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "without"), [("kvm", False), ("qemu", True)])
def test_xml_is_for_the_qemu_that_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, without: bool
) -> None:
    qemu = str(fake_qemu(tmp_path, "7.2"))
    argv = ["xml", "a", "--role", "master", "--memory", "1G", "--type", kind]
    assert main([*argv, "--qemu", qemu]) == 0
    domain = ET.fromstring(capsys.readouterr().out)
    assert domain.findtext("devices/emulator") == qemu
    vectors = [one for one in domain.iter() if one.get("name") == "vectors"]
    assert bool(vectors) is without


def test_xml_goes_to_standard_output_and_its_hints_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["xml", "a", "--role", "slave", "--memory", "1G"]) == 0
    out = capsys.readouterr()
    assert ET.fromstring(out.out).findtext("name") == "a-slave"
    assert "intel_iommu=on" in out.err


@pytest.mark.parametrize(
    ("role", "mode", "text"),
    [
        (
            *("master", "arena"),
            "<memory> and <memoryBacking>.\n# The arena is all of its RAM: no <numa>",
        ),
        ("master", "attach", "<memoryBacking>.\n# Where the slave is a VM"),
        ("slave", "attach", "<features>.\n# For interrupts"),
    ],
)
def test_xml_hints_name_the_elements_to_copy(
    capsys: pytest.CaptureFixture[str], role: str, mode: str, text: str
) -> None:
    assert main(["xml", "a", "--role", role, "--mode", mode, "--memory", "1G"]) == 0
    assert text in capsys.readouterr().err


VIRT = ["xml", "a", "--mode", "attach", "--memory", "8G", "--machine", "virt"]


def test_xml_of_a_virt_is_for_the_qemu_that_has_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*VIRT, "--role", "master", "--confined"]) == 0
    out = capsys.readouterr()
    assert "no qemu-system-aarch64 is in PATH" in out.err
    assert "memmap=" not in out.err  # of a q35's kernel
    assert 'arch="aarch64" machine="virt"' in out.out


@pytest.mark.parametrize("words", ["master", "slave", "slave --confined"])
def test_xml_has_a_virt_for_a_confined_master_only(
    capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert main([*VIRT, "--role", *words.split()]) == 2
    assert "for a confined master only: leave it out" in capsys.readouterr().err


def test_xml_has_no_port_for_a_window_that_no_vm_can_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["xml", "a", "--mode", "attach", "--memory", "3G", "--role"]
    assert "no power of two" in failure(capsys, *argv, "slave")


@pytest.mark.parametrize(
    "argv", [["add", "a", "--memory", "1M"], ["remove", "a"], ["list"]], ids=" ".join
)
def test_add_remove_and_list_need_a_daemon_with_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str]
) -> None:
    text = failure(capsys, *argv, "--run-dir", tmp_path)
    assert f"no daemon at {tmp_path}/control" in text
    assert "run --config FILE" in text


def test_valid_file_is_confirmed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "vms.toml"
    file.write_text('[device.a]\nmemory = "1G"\n')
    assert main(["check-config", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 1 device, no errors\n"


@pytest.mark.parametrize("argv", [["check-config"], ["run", "--config"]], ids=" ".join)
def test_each_mistake_of_a_file_is_a_line_with_status_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str]
) -> None:
    run_dir = tmp_path / "run"
    file = tmp_path / "vms.toml"
    file.write_text(f'run-dir = "{run_dir}"\n[device.a]\n[device.b]\nmemory = "x"')
    assert main([*argv, str(file)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:2: device.a: memory is missing: in arena mode give the master's RAM, "
        "such as 1G [H037]",
        f"{file}:4: device.b: memory 'x': write a size such as 512M or 4G [H029]",
    ]
    assert not run_dir.exists()


def test_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = failure(capsys, "check-config", "/nowhere/vms.toml")
    assert "/nowhere/vms.toml" in said
    assert said.endswith(" [H090]\n")


def test_status_of_no_device_is_no_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["status", "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no devices\n"


def test_prints_the_script_that_checks_a_confined_master(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = ["a", "--run-dir", str(tmp_path), "--memory", "4G", "--confined", "32M"]
    asked = ["qemu-args", *described, "--role", "master", "--kernel-args"]
    assert main(asked) == 0
    words = capsys.readouterr().out.strip()
    assert main(["master-check", *described]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/sh\n")
    assert f"WORDS='{words}'" in printed
    assert f"MAC=${{1:-{mac('a')}}}" in printed


def test_no_script_for_a_device_that_is_not_confined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["master-check", "a", "--run-dir", str(tmp_path), "--memory", "4G"]
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert "a is not confined" in printed.err
    # What `> check.sh` has kept of it may be run all the same.
    ran = subprocess.run(
        ["sh"], input=printed.out, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "this looks at nothing" in ran.stderr


def test_script_names_the_arguments_of_that_master(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["master-check", "a", "--run-dir", str(tmp_path), "--confined"]
    argv += ["--mode", "attach", "--memory", "8G", "--machine", "virt"]
    assert main(argv) == 0
    wanted = "qemu-args a --role master --memory SIZE --machine virt"
    assert wanted in capsys.readouterr().out
