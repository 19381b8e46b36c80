# SPDX-License-Identifier: Apache-2.0
"""What of a TAP needs CAP_NET_ADMIN: to make it, and to set it up.

An agent that has the capability makes these requests itself (`LocalRequests`).  One
that has given it up has a helper make them (tap/remote.py, tap/orders.py).  All else
is done by the TAP's descriptors, for which the kernel asks for no capability.

A TAP is known by its descriptor, which knows the name and the network namespace of now.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import Unusable
from . import left, namespace
from .membership import bridge_of, runs
from .netlink import netlink

T = TypeVar("T")

NODE = Path("/dev/net/tun")
VHOST_NODE = Path("/dev/vhost-net")


def ioc(direction: int, number: int, size: int) -> int:
    """Return an ioctl number as asm-generic/ioctl.h makes it."""
    return direction << 30 | size << 16 | ord("T") << 8 | number


NONE, WRITE, READ = 0, 1, 2
TUNSETIFF = ioc(WRITE, 202, 4)
TUNSETOWNER = ioc(WRITE, 204, 4)
TUNGETIFF = ioc(READ, 210, 4)
TUNGETDEVNETNS = ioc(NONE, 227, 0)
_SIOCGIFMTU = 0x8921  # linux/sockios.h

IFF_TUN_EXCL = 0x8000

# struct ifreq has 40 bytes: the name, and a union that begins with the flags.
ifreq = struct.Struct("=16sH22x")
_ifreq_mtu = struct.Struct("=16si20x")

_DROPPED = 11
"""Which of the counters counts what was dropped on its way out."""
RENAMED = 8
"""Attempts to find the TAP by a name, as another program may be renaming it now."""

Settings = Mapping[str, str | int]
"""Attributes of an interface and their values, as pyroute2 names them."""


class Requests(Protocol):
    """What needs CAP_NET_ADMIN: of this process, or of a helper.

    A request for a TAP that another program has deleted raises EBADFD.
    """

    def check_node(self) -> None:
        """Check that /dev/net/tun can be opened.

        Raises:
            Unusable: it cannot.
        """

    def attach(self, name: str, flags: int) -> tuple[int, str]:
        """Return a new descriptor of the TAP of that name or pattern, and its name.

        Raises:
            Unusable: /dev/net/tun cannot be opened.
            OSError: the kernel refuses the name or the flags.
        """

    def moved(self, fd: int) -> bool:
        """Whether the TAP is in another network namespace than we are."""

    def set(self, fd: int, what: str, settings: Settings) -> None:
        """Set attributes of the TAP.

        Raises:
            Unusable: the kernel refuses `what`.
        """

    def add_address(self, fd: int, address: str, length: int) -> None:
        """Give the TAP an address, if it does not have it.

        Raises:
            Unusable: the kernel refuses.
        """

    def remove_address(self, fd: int, address: str, length: int) -> None:
        """Take an address from the TAP, if it has it.

        Raises:
            Unusable: the kernel refuses.
        """

    def mtu(self, fd: int) -> int:
        """Return the MTU of now."""

    def sends(self, fd: int) -> bool:
        """Whether the kernel may put packets into the TAP."""

    def dropped(self, fd: int) -> int:
        """Return how many packets the kernel has dropped because queues were full."""

    def counters(self, fd: int) -> tuple[int, ...]:
        """Return the TAP's counters, in the order of /proc/net/dev."""

    def bridge(self, fd: int) -> str | None:
        """Return the name of the bridge that the TAP is in."""

    def open_vhost_net(self) -> int:
        """Return a new descriptor of /dev/vhost-net.

        Raises:
            Unusable: it cannot be opened.
        """

    def remove(self, index: int) -> None:
        """Remove a TAP that an agent has left, and that no process has open."""


class LocalRequests:
    """The requests of a process that may make them.

    Args:
        node: /dev/net/tun.
        vhost: /dev/vhost-net.
    """

    def __init__(self, node: Path = NODE, vhost: Path = VHOST_NODE) -> None:
        self._node = node
        self._vhost = vhost

    def check_node(self) -> None:
        """Check that /dev/net/tun can be opened."""
        os.close(self._open())

    def _open(self) -> int:
        # NONBLOCK: a worker reads until there are no more packets, and must not sleep
        # there.
        try:
            return os.open(self._node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Unusable(
                f"no {self._node}: modprobe tun, or give the container --device "
                f"{self._node}",
                code="G130",
            ) from None
        except PermissionError:
            raise Unusable(
                f"no permission to open {self._node}: run as root", code="G131"
            ) from None
        except OSError as error:
            raise Unusable(
                f"{self._node}: {error.strerror}: modprobe tun", code="G132"
            ) from error

    def attach(self, name: str, flags: int) -> tuple[int, str]:
        """Return a new descriptor of a TAP, and its name."""
        fd = self._open()
        try:
            request = bytearray(ifreq.pack(name.encode(), flags))
            fcntl.ioctl(fd, TUNSETIFF, request)
            if flags & IFF_TUN_EXCL:
                # It is new.  The kernel lets every user attach to a TAP without an
                # owner: to one that a killed agent has left, and to a further queue of
                # one that is open.
                fcntl.ioctl(fd, TUNSETOWNER, os.geteuid())
        except BaseException:
            os.close(fd)
            raise
        # The kernel has written the name that it chose for a pattern.
        return fd, text(ifreq.unpack(request)[0])

    def moved(self, fd: int) -> bool:
        """Whether the TAP is in another network namespace."""
        with ExitStack() as undo:
            return not namespace.is_ours(_open_namespace(fd, undo))

    def set(self, fd: int, what: str, settings: Settings) -> None:
        """Set attributes of the TAP."""

        def request() -> None:
            with netlink(f"TAP {current_name(fd)}", what) as ip:
                ip.link("set", index=index(fd), **settings)

        _where_it_is(fd, request)

    def add_address(self, fd: int, address: str, length: int) -> None:
        """Give the TAP an address."""

        def request() -> None:
            what = f"address {address}/{length}"
            with netlink(f"TAP {current_name(fd)}", what) as ip:
                # "replace", not "add": a TAP that the user made may have the address
                # already, and the kernel would refuse a second one (EEXIST).
                ip.addr("replace", index=index(fd), address=address, prefixlen=length)

        _where_it_is(fd, request)

    def remove_address(self, fd: int, address: str, length: int) -> None:
        """Take an address from the TAP."""

        def request() -> None:
            what = f"address {address}/{length} to be removed"
            with netlink(f"TAP {current_name(fd)}", what) as ip:
                here = index(fd)
                # The user may have removed it by hand.
                if ip.get_addr(index=here, address=address, prefixlen=length):
                    ip.addr("del", index=here, address=address, prefixlen=length)

        _where_it_is(fd, request)

    def mtu(self, fd: int) -> int:
        """Return the MTU of now."""
        return int(_ifreq_mtu.unpack(_ask_by_name(fd, _SIOCGIFMTU))[1])

    def sends(self, fd: int) -> bool:
        """Whether the kernel may put packets into the TAP."""
        return _where_it_is(fd, lambda: runs(index(fd)))

    def dropped(self, fd: int) -> int:
        """Return how many packets the kernel has dropped because queues were full."""
        return self.counters(fd)[_DROPPED]

    def counters(self, fd: int) -> tuple[int, ...]:
        """Return the TAP's counters."""
        return _where_it_is(fd, lambda: _counters(fd))

    def open_vhost_net(self) -> int:
        """Return a new descriptor of /dev/vhost-net."""
        try:
            return os.open(self._vhost, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            # ENODEV: the node is there before the module, which cannot be loaded.
            raise Unusable(
                f"{self._vhost}: {error.strerror}: vhost-net is not there for us: "
                "modprobe vhost_net, and give a container --device "
                f"{self._vhost}; or use --data-plane ring",
                code="G133",
            ) from error

    def bridge(self, fd: int) -> str | None:
        """Return the name of the bridge that the TAP is in."""
        return _where_it_is(fd, lambda: bridge_of(index(fd)))

    def remove(self, index: int) -> None:
        """Remove a TAP that an agent has left."""
        left.remove(index)


def text(name: bytes) -> str:
    """Return a name of the kernel's as text."""
    return name.split(b"\0", 1)[0].decode()


def current_name(fd: int) -> str:
    """Return the name of now of a TAP."""
    # The kernel fills the name in, whatever the request has.
    answer = bytearray(ifreq.size)
    fcntl.ioctl(fd, TUNGETIFF, answer)
    return text(ifreq.unpack(answer)[0])


def index(fd: int) -> int:
    """Return the interface index, in the network namespace of the TAP.

    Call it in that namespace.

    Raises:
        Unusable: it is not found by its name.
    """
    for _ in range(RENAMED):
        name = current_name(fd)
        with suppress(OSError):
            found = socket.if_nametoindex(name)
            # Still its name: else the index is of an interface that has the old
            # name now.
            if current_name(fd) == name:
                return found
    raise _not_found(fd)


def _not_found(fd: int) -> Unusable:
    return Unusable(
        f"TAP {current_name(fd)} is not found: it is renamed, or moved, now",
        code="G134",
    )


def _open_namespace(fd: int, undo: ExitStack) -> int:
    """Return a descriptor of the network namespace that the TAP is in now."""
    try:
        found: int = fcntl.ioctl(fd, TUNGETDEVNETNS)
    except OSError as error:
        # Linux before 5.6 does not know this ioctl: then it was not moved, or the
        # search for its name fails, and says so.
        if error.errno == errno.EBADFD:
            raise
        found = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, found)
    return found


def _where_it_is(fd: int, action: Callable[[], T]) -> T:
    """Do something in the network namespace of the TAP."""
    with ExitStack() as undo:
        found = _open_namespace(fd, undo)
        return action() if namespace.is_ours(found) else namespace.run_in(found, action)


def _ask_by_name(fd: int, request: int) -> bytes:
    """Ask the kernel for something by the name of now, where the TAP is."""
    return _where_it_is(fd, lambda: _ask_here(fd, request))


def _ask_here(fd: int, request: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(RENAMED):
            name = current_name(fd)
            argument = bytearray(ifreq.pack(name.encode(), 0))
            with suppress(OSError):
                fcntl.ioctl(sock.fileno(), request, argument)
                if current_name(fd) == name:
                    return bytes(argument)
    raise _not_found(fd)


def _counters(fd: int) -> tuple[int, ...]:
    # The file is that of the thread's network namespace; sysfs shows another one.
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == current_name(fd):
            return tuple(map(int, counts.split()))
    raise _not_found(fd)
