# SPDX-License-Identifier: Apache-2.0
"""The TAP: what the slave's kernel sees of the master's card.

It is made when the agent learns how many queue pairs there are, and goes with the
agent, unless the user made it before.  The ioctls are those of linux/if_tun.h.
"""

import errno
import fcntl
import hashlib
import ipaddress
import os
import re
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Unusable
from ..net_options import Offload
from .netlink import netlink

NODE = Path("/dev/net/tun")
DEFAULT_NAME = "vp%d"
MTU_MIN, MTU_MAX = 68, 65521  # the kernel's own limits for a TAP
NAME_MAX = 15


def _ioc(direction: int, number: int, size: int) -> int:
    """Return an ioctl number as asm-generic/ioctl.h makes it."""
    return direction << 30 | size << 16 | ord("T") << 8 | number


_WRITE, _READ = 1, 2
TUNSETIFF = _ioc(_WRITE, 202, 4)
TUNSETOFFLOAD = _ioc(_WRITE, 208, 4)
TUNGETIFF = _ioc(_READ, 210, 4)
TUNSETVNETHDRSZ = _ioc(_WRITE, 216, 4)
TUNSETQUEUE = _ioc(_WRITE, 217, 4)
TUNSETCARRIER = _ioc(_WRITE, 226, 4)

IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

_ifreq = struct.Struct("=16sH22x")


_MACHINE = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class TapConfig:
    """What one TAP is to be; None leaves it to the kernel or the master."""

    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    addresses: tuple[Address, ...] = field(default=())


def parse_name(text: str) -> str:
    """Return an interface name, or a pattern of one with a single ``%d``.

    Raises:
        ValueError: the kernel would not take it.
    """
    plain = text.replace("%d", "", 1)
    if not is_name(plain) or len(text) > NAME_MAX:
        raise ValueError(
            f"{text!r} is no interface name: 1 to {NAME_MAX} characters, no slash, "
            "colon, space or percent sign"
        )
    return text


def is_name(text: str) -> bool:
    """Whether the kernel takes it for an interface's name."""
    usable = re.fullmatch(r"[^\s/:%]+", text) and len(text.encode()) <= NAME_MAX
    return bool(usable) and text.isprintable() and text not in (".", "..")


def parse_mac(text: str) -> str:
    """Return a unicast MAC address in lower case.

    Raises:
        ValueError: it is none.
    """
    mac = text.lower()
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac):
        raise ValueError(f"{text!r} is no MAC address, as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{text!r} is a group's or no MAC address: no card has it")
    return mac


def stable_mac(*what: str) -> str:
    """Return a MAC that is this machine's for `what`, and the same each time.

    Else a new agent's TAP would have a new one, and the master would send to the old
    one until its ARP entry expires.
    """
    machine = next((path.read_text() for path in _MACHINE if path.exists()), "")
    digest = hashlib.sha256("\0".join((machine, *what)).encode()).digest()[:6]
    local = bytes([digest[0] & 0xFC | 0x02]) + digest[1:]  # and not a group's
    return local.hex(":")


def parse_mtu(text: str) -> int:
    """Return an MTU in bytes.

    Raises:
        ValueError: it is no number, or none that a TAP can have.
    """
    mtu = int(text) if text.isdecimal() else 0
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise ValueError(f"{text!r} is no MTU: {MTU_MIN} to {MTU_MAX} bytes")
    return mtu


def parse_address(text: str) -> Address:
    """Return an IPv4 or IPv6 address with its prefix length.

    Raises:
        ValueError: it is none, or the prefix length is missing.
    """
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length, as in 10.0.0.1/24")
    return ipaddress.ip_interface(text)


class Tap:
    """A TAP with a descriptor for each queue pair, ready for `readv` and `writev`.

    Args:
        name: its name or pattern; it may exist if nobody uses it.
        queues: how many queue pairs.
        new: refuse one that exists.
        node: /dev/net/tun.

    Raises:
        Unusable: it cannot be had; the text says why.
    """

    def __init__(
        self, name: str, queues: int, *, new: bool = False, node: Path = NODE
    ) -> None:
        self._undo = ExitStack()
        with ExitStack() as undo:
            first = _open(node, undo)
            self.name, self.made = _attach_first(first, name, queues, new)
            fds = [first]
            for _ in range(queues - 1):
                fds.append(_open(node, undo))
                _attach(fds[-1], self.name, _flags(queues))
            self.fds = tuple(fds)
            self._undo = undo.pop_all()
        self.set_carrier(False)

    def set_header_length(self, length: int) -> None:
        """Set the virtio-net header's length in bytes, for all queues."""
        self._ioctl(TUNSETVNETHDRSZ, struct.pack("=i", length))

    def set_offloads(self, offloads: Offload) -> None:
        """Set what the TAP may leave to the master, for all queues."""
        self._ioctl(TUNSETOFFLOAD, int(offloads))

    def check(self) -> None:
        """See that it is still there.

        Raises:
            Unusable: somebody deleted it.
        """
        self._ioctl(TUNGETIFF, bytes(_ifreq.size))

    def set_carrier(self, on: bool) -> None:
        """Plug the cable in, or out."""
        self._ioctl(TUNSETCARRIER, struct.pack("=i", on))

    def use_queue(self, index: int, on: bool) -> None:
        """Let the kernel use a queue other than the first, or not."""
        flag = IFF_ATTACH_QUEUE if on else IFF_DETACH_QUEUE
        try:
            self._ioctl(TUNSETQUEUE, _ifreq.pack(b"", flag), queue=index)
        except OSError:
            self.check()  # it is EINVAL, if that is the reason
            raise

    def _ioctl(self, request: int, argument: int | bytes, *, queue: int = 0) -> None:
        try:
            fcntl.ioctl(self.fds[queue], request, argument)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise Unusable(
                    f"TAP {self.name} is gone: somebody deleted it"
                ) from None
            raise

    def configure(self, config: TapConfig) -> None:
        """Set MAC, MTU and addresses, and set it up.

        Raises:
            Unusable: the kernel refuses one of them.
        """
        if config.mac is not None:
            _set(self.name, f"MAC {config.mac}", address=config.mac)
        if config.mtu is not None:
            self.set_mtu(config.mtu)
        for address in config.addresses:
            _add_address(self.name, address)
        _set(self.name, "to set it up", state="up")

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU in bytes.

        Raises:
            Unusable: the kernel refuses it.
        """
        _set(self.name, f"MTU {mtu}", mtu=mtu)

    def close(self) -> None:
        """Let go of it; if we made it, it is gone then."""
        self._undo.close()


def check_node(node: Path = NODE) -> None:
    """See that there is a /dev/net/tun, before anything is changed for its sake.

    Raises:
        Unusable: there is none for us.
    """
    with ExitStack() as undo:
        _open(node, undo)


def _flags(queues: int) -> int:
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    return flags | IFF_MULTI_QUEUE if queues > 1 else flags


def _open(node: Path, undo: ExitStack) -> int:
    try:
        fd = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unusable(
            f"no {node}: modprobe tun, or give the container --device {node}"
        ) from None
    except PermissionError:
        raise Unusable(f"no permission to open {node}: run as root") from None
    except OSError as error:
        raise Unusable(f"{node}: {error.strerror}: modprobe tun") from error
    undo.callback(os.close, fd)
    return fd


def _attach_first(fd: int, name: str, queues: int, new: bool) -> tuple[str, bool]:
    """Make the TAP, or take the one there is; return its name, and if we made it."""
    flags = _flags(queues)
    try:
        return _attach(fd, name, flags | IFF_TUN_EXCL), True
    except OSError as error:
        if error.errno == errno.EPERM:
            raise Unusable("making a TAP needs CAP_NET_ADMIN: run as root") from None
        if error.errno != errno.EBUSY or new:
            raise Unusable(f"TAP {name}: {error.strerror}") from error
    try:
        return _attach(fd, name, flags), False
    except OSError as error:
        raise Unusable(f"TAP {name} exists, and {_why(error, queues)}") from error


def _attach(fd: int, name: str, flags: int) -> str:
    request = bytearray(_ifreq.pack(name.encode(), flags))
    fcntl.ioctl(fd, TUNSETIFF, request)
    raw: bytes = _ifreq.unpack(request)[0]
    return raw.split(b"\0", 1)[0].decode()


def _why(error: OSError, queues: int) -> str:
    """Explain why an interface that exists cannot be attached to."""
    if error.errno in (errno.EBUSY, errno.E2BIG):
        return "another process has it: choose another --tap"
    if error.errno == errno.EINVAL:
        kind = "with" if queues > 1 else "without"
        return (
            f"is no TAP {kind} multi_queue, as {queues} queue pair(s) need: choose "
            "another --tap, or remove it"
        )
    return f"can't be had: {error.strerror}"


def _set(name: str, what: str, **attributes: object) -> None:
    with netlink(f"TAP {name}", what) as ip:
        ip.link("set", index=socket.if_nametoindex(name), **attributes)


def _add_address(name: str, address: Address) -> None:
    with netlink(f"TAP {name}", f"address {address}") as ip:
        index = socket.if_nametoindex(name)
        # "replace": a TAP that was here before may have it already.
        ip.addr(
            "replace",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
        )
