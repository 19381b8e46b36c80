# SPDX-License-Identifier: Apache-2.0
"""The commands that print what a VM needs: `qemu-args` for QEMU, `xml` for libvirt."""

import argparse
import json
import sys
from pathlib import Path

from ..config import options
from ..config.device import DeviceConfig, Mode, parse_size
from ..device import status
from ..errors import HostError
from ..hotplug import shmem_xml
from . import libvirt_xml, print_status, qemu_args, qemu_version
from .arguments import add_name, run_dir
from .manage import ask_status


def add_qemu_args(parser: argparse.ArgumentParser) -> None:
    _add_vm(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument(
        "--tcg",
        action="store_true",
        help="the VM runs without KVM: a master gets no MSI-X from a QEMU that crashes "
        "with it then (before 8.0), a slave gets one hint more",
    )
    parser.set_defaults(run=_qemu_args)


def add_xml(parser: argparse.ArgumentParser) -> None:
    _add_vm(parser)
    parser.add_argument(
        "--type",
        choices=["kvm", "qemu"],
        default="kvm",
        help="the domain's type: qemu is for a machine without KVM "
        "(default: %(default)s)",
    )
    parser.set_defaults(run=_xml)


def _add_vm(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a VM, to `qemu-args` and `xml` alike."""
    add_name(parser)
    options.add_to(parser, *options.WHAT, *options.SLAVE_VM, *options.PLACES)
    parser.add_argument("--role", choices=["master", "slave"], required=True)
    parser.add_argument(
        "--windows",
        type=int,
        choices=range(1, 33),
        default=1,
        metavar="N",
        help="memory files that the master has in attach mode (default: %(default)s)",
    )
    parser.add_argument(
        "--vectors",
        type=int,
        metavar="N",
        help="MSI-X vectors of the master's card, instead of the usual number",
    )
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="the QEMU that runs the VM, which is asked for its version (default: "
        f"{qemu_version.PROGRAM} in PATH; if there is none, version "
        f"{qemu_version.ASSUMED} is assumed)",
    )


def _qemu_args(args: argparse.Namespace) -> None:
    # Only attach mode uses `ram`; in arena mode the size is in the configuration.
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    qemu = qemu_version.find(args.qemu)
    if args.role == "master":
        vectors = _vectors(args, qemu.version, tcg=args.tcg)
        words = qemu_args.master(device, qemu.version, ram, vectors=vectors)
    else:
        words = qemu_args.slave(device, ram, windows=args.windows)
    # On stderr, so that a shell's $(...) and a pipe get the arguments alone.
    print(f"# {qemu}", file=sys.stderr)
    if args.json:
        print(json.dumps(qemu_args.flat(words)))
        return
    print(qemu_args.text(words))
    hint = qemu_args.hint(device, args.role, qemu.version, tcg=args.tcg)
    print(hint, end="", file=sys.stderr)


def _xml(args: argparse.Namespace) -> None:
    ram = args.memory and parse_size(args.memory)
    device = _qemu_device(args)
    qemu = qemu_version.find(args.qemu)
    tcg = args.type == "qemu"
    if args.role == "master":
        vectors = _vectors(args, qemu.version, tcg=tcg)
        element = libvirt_xml.master(device, ram, kind=args.type, vectors=vectors)
    else:
        element = libvirt_xml.slave(device, ram, kind=args.type, windows=args.windows)
    # libvirt chooses its own QEMU as long as the user names none.
    if args.qemu is not None and qemu.program is not None:
        libvirt_xml.set_emulator(element, qemu.program)
    print(f"# {qemu}", file=sys.stderr)
    print(shmem_xml.text(element))
    print(libvirt_xml.hint(device, args.role, tcg=tcg), file=sys.stderr)


def _vectors(
    args: argparse.Namespace, version: qemu_version.Version, *, tcg: bool
) -> int | None:
    """Return the MSI-X vectors of a master's card; None for the usual number."""
    given: int | None = args.vectors
    if given is None and qemu_args.needs_intx(version, tcg=tcg):
        return 0
    return given


def _qemu_device(args: argparse.Namespace) -> DeviceConfig:
    """Return the device as the command line describes it, or as a daemon serves it."""
    given = options.texts(args)
    # In attach mode --memory is the size of the master's own memory, for the example
    # that is printed.  It is no option of the device, which would refuse it.
    if given.get("mode") == Mode.ATTACH:
        given.pop("memory", None)
    # An arena without a size cannot be described: ask the daemon that serves it.
    elif "memory" not in given:
        return _running_config(args)
    return options.device(args.name, given)


def _running_config(args: argparse.Namespace) -> DeviceConfig:
    """Return the configuration of a device that a daemon serves.

    Raises:
        HostError: no daemon serves the device, or the device failed.
    """
    try:
        running = ask_status(run_dir(args), args.name)
    except HostError as error:
        raise HostError(f"{error}; or give --memory") from error
    if running["state"] == status.FAILED:
        raise HostError(f"{print_status.text(running)}; give --memory")
    mode = Mode(running["mode"])
    attach = mode is Mode.ATTACH
    # A QMP socket is an absolute path; no libvirt domain has a "/" in its name.
    slave = (running["plugging"] or {}).get("slave", "")
    return DeviceConfig(
        name=args.name,
        mode=mode,
        memory=0 if attach else running["memory"]["size"],
        queue_pairs=running["queue_pairs"],
        run_dir=run_dir(args),
        # Attach mode has no arena, so nothing looks at the directory.
        memory_dir=Path() if attach else Path(running["memory"]["path"]).parent,
        socket_path=Path(running["sockets"]["vhost_user"]),
        slave_qmp=Path(slave) if slave.startswith("/") else None,
        slave_libvirt=slave if slave and not slave.startswith("/") else None,
    )
