# SPDX-License-Identifier: Apache-2.0
"""The TAP: what the slave's kernel sees of the master's card.

The agent makes the TAP when it knows the number of queue pairs.  The TAP disappears
when the agent closes it; one that the user made before stays, and so does one whose
agent was killed (left.py).  The ioctls are those of linux/if_tun.h.

While it is open, the TAP may be renamed (udev does that) and moved to another network
namespace (containers).  Its descriptors stay the same, and know the name and the
namespace of now.  So both are asked for each time, and never remembered.
"""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from ..errors import Unusable
from ..net_options import Offload
from . import namespace
from .membership import bridge_of
from .netlink import netlink
from .settings import Address, TapConfig

T = TypeVar("T")

NODE = Path("/dev/net/tun")
DEFAULT_NAME = "vp%d"


def _ioc(direction: int, number: int, size: int) -> int:
    """Return an ioctl number as asm-generic/ioctl.h makes it."""
    return direction << 30 | size << 16 | ord("T") << 8 | number


_NONE, _WRITE, _READ = 0, 1, 2
TUNSETIFF = _ioc(_WRITE, 202, 4)
TUNSETPERSIST = _ioc(_WRITE, 203, 4)
TUNSETOFFLOAD = _ioc(_WRITE, 208, 4)
TUNGETIFF = _ioc(_READ, 210, 4)
TUNSETVNETHDRSZ = _ioc(_WRITE, 216, 4)
TUNSETQUEUE = _ioc(_WRITE, 217, 4)
TUNSETCARRIER = _ioc(_WRITE, 226, 4)
TUNGETDEVNETNS = _ioc(_NONE, 227, 0)
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_SIOCSIFHWADDR = 0x8924

IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000
_IFF_RUNNING = 0x40

# struct ifreq has 40 bytes: the name, and a union that begins with the flags.
_ifreq = struct.Struct("=16sH22x")
_ifreq_mtu = struct.Struct("=16si20x")
_ifreq_mac = struct.Struct("=16sH6s16x")
_ARPHRD_ETHER = 1

_DROPPED = 11
"""Which of the numbers in /proc/net/dev counts what was dropped on its way out."""
_RENAMED = 8
"""Attempts to find the TAP by a name, as another program may be renaming it now."""
_MOST_WAITING = 1 << 16
"""Packets that may wait in a queue: its length (1000, or what the user has set)."""


class Tap:
    """A TAP with a descriptor for each queue pair, ready for `readv` and `writev`.

    Args:
        name: its name or pattern; a TAP of this name may exist if it is free.
        queues: how many queue pairs.
        new: refuse a TAP that exists.
        node: /dev/net/tun.

    Raises:
        Unusable: the TAP cannot be made or attached to.
    """

    def __init__(
        self, name: str, queues: int, *, new: bool = False, node: Path = NODE
    ) -> None:
        self._undo = ExitStack()
        with ExitStack() as undo:
            first = _open(node, undo)
            self._name, self.made = _attach_first(first, name, queues, new)
            self.ours = self.made
            """Whether an agent made it, this one or an earlier one."""
            self.fds: tuple[int, ...] = (first,)
            for _ in range(queues - 1):
                fd = _open(node, undo)
                self._attach_further(fd, _flags(queues), node)
                self.fds += (fd,)
            self._undo = undo.pop_all()
        # A new TAP has its carrier.  Without it until the master's rings run, the slave
        # does not send into queues that no worker reads.
        self.set_carrier(False)
        self.takes_uso = self._takes_uso()

    def _takes_uso(self) -> bool:
        """Return whether the slave's kernel knows UDP packets with GSO (Linux 6.2).

        Such a kernel takes them from us, whatever offloads are set.
        """
        try:
            self.set_offloads(Offload.CSUM | Offload.USO)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        self.set_offloads(Offload(0))
        return True

    def _attach_further(self, fd: int, flags: int, node: Path) -> None:
        """Attach another queue to the TAP of the first one."""
        for _ in range(_RENAMED):
            # By the name of now: a pattern, or an old name, would make another TAP.
            name = self._current_name()
            _attach(fd, name, flags)
            if self._current_name() == name:
                return
            # It was renamed between the two: `fd` has made a TAP with the old name.
            # A descriptor attaches once, so it is replaced in place by a fresh one.
            with ExitStack() as undo:
                os.dup2(_open(node, undo), fd, inheritable=False)
        raise Unusable(f"TAP {self.name} is renamed all the time: try again")

    @property
    def name(self) -> str:
        """The name of now; the last one if the TAP was deleted or is closed."""
        if self.fds:
            with suppress(Unusable):
                self._name = self._current_name()
        return self._name

    def _current_name(self) -> str:
        # The kernel fills the name in, whatever the request has.
        return _text(_ifreq.unpack(self._ask(TUNGETIFF))[0])

    @property
    def moved(self) -> bool:
        """Whether another program moved the TAP to another network namespace."""
        with ExitStack() as undo:
            return not namespace.is_ours(self._open_namespace(undo))

    def _open_namespace(self, undo: ExitStack) -> int:
        """Return a descriptor of the network namespace that the TAP is in now."""
        try:
            fd = fcntl.ioctl(self.fds[0], TUNGETDEVNETNS)
        except OSError as error:
            # Linux before 5.6 does not know this ioctl: then it was not moved, or the
            # search for its name fails, and says so.
            if error.errno == errno.EBADFD:
                raise self._gone() from None
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        return fd

    def _where_it_is(self, action: Callable[[], T]) -> T:
        """Do something in the network namespace of the TAP."""
        with ExitStack() as undo:
            fd = self._open_namespace(undo)
            return action() if namespace.is_ours(fd) else namespace.run_in(fd, action)

    def index(self) -> int:
        """Return the interface index, in the network namespace of the TAP.

        Call it in that namespace.

        Raises:
            Unusable: the TAP was deleted.
        """
        for _ in range(_RENAMED):
            name = self._current_name()
            with suppress(OSError):
                index = socket.if_nametoindex(name)
                # Still its name: else the index is of an interface that has the old
                # name now.
                if self._current_name() == name:
                    return index
        raise Unusable(f"TAP {self.name} is not found: it is renamed, or moved, now")

    @property
    def bridge(self) -> str | None:
        """The name of the bridge that the TAP is in now; None if it is in none.

        Raises:
            Unusable: the TAP was deleted.
            OSError: it was deleted, or moved, just now.
        """
        return self._where_it_is(lambda: bridge_of(self.index()))

    @property
    def dropped(self) -> int:
        """How many packets the kernel has dropped because the queues were full.

        Raises:
            Unusable: the TAP was deleted.
            OSError: it was deleted, or moved, just now.
        """
        return self._where_it_is(self._dropped_here)

    def _dropped_here(self) -> int:
        # The file is that of the thread's network namespace; sysfs shows another one.
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == self._current_name():
                return int(counts.split()[_DROPPED])
        raise Unusable(f"TAP {self.name} is not found: it is renamed, or moved, now")

    def _set(self, what: str, **attributes: object) -> None:
        def request() -> None:
            with netlink(f"TAP {self.name}", what) as ip:
                ip.link("set", index=self.index(), **attributes)

        self._where_it_is(request)

    def set_header_length(self, length: int) -> None:
        """Set the virtio-net header's length in bytes, for all queues."""
        self._ioctl(TUNSETVNETHDRSZ, struct.pack("=i", length))

    def set_offloads(self, offloads: Offload) -> None:
        """Set what the TAP may leave to the master, for all queues."""
        self._ioctl(TUNSETOFFLOAD, int(offloads))

    def check(self) -> None:
        """Check that the TAP still exists.

        Raises:
            Unusable: the TAP was deleted.
        """
        # It fails with EBADFD if the queue has lost its TAP.
        self._current_name()

    def set_carrier(self, on: bool) -> None:
        """Turn the carrier on or off."""
        # By the descriptor (since Linux 5.0): unlike a request by netlink it cannot
        # meet another interface that has got the name.
        self._ioctl(TUNSETCARRIER, struct.pack("=i", on))

    def use_queue(self, index: int, on: bool) -> None:
        """Attach a queue other than the first to the TAP, or detach it.

        The descriptor stays open.  The kernel drops the packets that wait in a queue
        when it is detached.

        Raises:
            Unusable: the TAP was deleted.
        """
        flag = IFF_ATTACH_QUEUE if on else IFF_DETACH_QUEUE
        try:
            self._ioctl(TUNSETQUEUE, _ifreq.pack(b"", flag), queue=index)
        except OSError:
            # TUNSETQUEUE is the one ioctl that reports a deleted TAP as EINVAL, not
            # EBADFD, and EINVAL has other reasons too: a second ioctl tells.
            self.check()
            raise

    def _ioctl(
        self, request: int, argument: int | bytes | bytearray, *, queue: int = 0
    ) -> None:
        try:
            fcntl.ioctl(self.fds[queue], request, argument)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise self._gone() from None
            raise

    def _ask(self, request: int) -> bytes:
        """Return the struct ifreq that the kernel fills in."""
        answer = bytearray(_ifreq.size)  # ioctl() writes the answer into it
        self._ioctl(request, answer)
        return bytes(answer)

    def _gone(self) -> Unusable:
        return Unusable(f"TAP {self._name} is gone: another program deleted it")

    def discard(self, queue: int) -> None:
        """Throw away the packets that wait in a queue."""
        # An end, although the slave's kernel may send all the time: what it sends from
        # now on may stay.
        for _ in range(_MOST_WAITING):
            try:
                # Enough for a net header: a TAP cuts the rest of the packet off.
                os.read(self.fds[queue], 64)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADFD:
                    raise self._gone() from None
                # A packet that no net header can describe: it is out of the queue too.

    @property
    def mac(self) -> str:
        """The MAC of now."""
        raw: bytes = _ifreq_mac.unpack(self._ask(_SIOCGIFHWADDR))[2]
        return raw.hex(":")

    def set_mac(self, mac: str) -> None:
        """Set the MAC."""
        raw = bytes.fromhex(mac.replace(":", ""))
        # By the descriptor, so it needs neither name nor namespace.
        self._ioctl(_SIOCSIFHWADDR, _ifreq_mac.pack(b"", _ARPHRD_ETHER, raw))

    def configure(self, config: TapConfig) -> None:
        """Set MAC, MTU and addresses, and bring the interface up.

        Raises:
            Unusable: the kernel refuses a setting.
        """
        if config.mac is not None:
            self._set(f"MAC {config.mac}", address=config.mac)
        if config.mtu is not None:
            self.set_mtu(config.mtu)
        for address in config.addresses:
            self._add_address(address)
        # Last: from here on the kernel sends its first packets, which have the MAC.
        self._set("to set it up", state="up")

    def _add_address(self, address: Address) -> None:
        def request() -> None:
            with netlink(f"TAP {self.name}", f"address {address}") as ip:
                # "replace", not "add": a TAP that the user made may have the address
                # already, and the kernel would refuse a second one (EEXIST).
                ip.addr(
                    "replace",
                    index=self.index(),
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                )

        self._where_it_is(request)

    @property
    def mtu(self) -> int:
        """The MTU of now: the user may have changed it (ip link set mtu).

        Raises:
            Unusable: the TAP was deleted.
        """
        return int(_ifreq_mtu.unpack(self._ask_by_name(_SIOCGIFMTU))[1])

    @property
    def idle(self) -> bool:
        """Whether no packet waits in a queue, and the kernel puts no further one there.

        The kernel goes on sending for some time after the carrier has gone.

        Raises:
            Unusable: the TAP was deleted.
        """
        # First: no packet can come after this.
        sends = _ifreq.unpack(self._ask_by_name(_SIOCGIFFLAGS))[1] & _IFF_RUNNING
        poll = select.poll()
        for fd in self.fds:
            poll.register(fd, select.POLLIN)
        return not sends and not poll.poll(0)

    def _ask_by_name(self, request: int) -> bytes:
        """Ask the kernel for something by the name of now, where the TAP is."""
        return self._where_it_is(lambda: self._ask_here(request))

    def _ask_here(self, request: int) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(_RENAMED):
                name = self._current_name()
                argument = bytearray(_ifreq.pack(name.encode(), 0))
                with suppress(OSError):
                    fcntl.ioctl(sock.fileno(), request, argument)
                    if self._current_name() == name:
                        return bytes(argument)
        raise Unusable(f"TAP {self.name} is not found: it is renamed, or moved, now")

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU in bytes.

        Raises:
            Unusable: the kernel refuses it.
        """
        self._set(f"MTU {mtu}", mtu=mtu)

    def leave_when_killed(self, alias: str) -> None:
        """Have the kernel keep the TAP, which is ours, if this process is killed.

        Args:
            alias: by which the next agent finds it.

        Raises:
            Unusable: the kernel refuses the alias.
        """
        # In this order: a TAP that stays without an alias would be found by no agent.
        self._set(f"alias {alias!r}", ifalias=alias)
        self._ioctl(TUNSETPERSIST, 1)

    def close(self, *, keep: bool = False) -> None:
        """Close all queues; the kernel then removes a TAP of ours.

        Args:
            keep: leave it to the next agent instead.
        """
        name = self.name
        if self.fds and self.ours and not keep:
            with suppress(Unusable):  # another program has removed it
                self._ioctl(TUNSETPERSIST, 0)
        self._undo.close()
        self.fds, self._name = (), name


def check_node(node: Path = NODE) -> None:
    """Check that /dev/net/tun can be opened.

    Raises:
        Unusable: it does not exist, or we may not open it.
    """
    with ExitStack() as undo:
        _open(node, undo)


def _flags(queues: int) -> int:
    # NO_PI: no four bytes of flags and protocol before a packet.  VNET_HDR: each read
    # and write begins with a virtio-net header, as each packet in the master's buffers
    # does.  With it checksum and segmentation offload reach the other side.
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    # The flag must be the same as when the TAP was made (else EINVAL).  A TAP that the
    # user made with the defaults of `ip tuntap` is one without multi_queue.
    return flags | IFF_MULTI_QUEUE if queues > 1 else flags


def _open(node: Path, undo: ExitStack) -> int:
    # NONBLOCK: a worker reads until there are no more packets, and must not sleep
    # there.
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
    """Make the TAP or attach to an existing one; return its name, and if we made it."""
    flags = _flags(queues)
    # TUN_EXCL first: one call without it would not tell whether the TAP was there, and
    # a TAP of the user's keeps its MAC.
    try:
        return _attach(fd, name, flags | IFF_TUN_EXCL), True
    except OSError as error:
        # Only for a name that does not exist: else the kernel says EBUSY, and a user
        # who owns the TAP may attach to it without the capability.
        if error.errno == errno.EPERM:
            raise Unusable("making a TAP needs CAP_NET_ADMIN: run as root") from None
        if error.errno != errno.EBUSY or new:
            raise Unusable(f"TAP {name}: {error.strerror}") from error
    try:
        return _attach(fd, name, flags), False
    except OSError as error:
        why = _attach_failure(error, queues)
        raise Unusable(f"TAP {name} exists, and {why}") from error


def _attach(fd: int, name: str, flags: int) -> str:
    request = bytearray(_ifreq.pack(name.encode(), flags))
    fcntl.ioctl(fd, TUNSETIFF, request)
    # The kernel has written the name that it chose for a pattern.
    return _text(_ifreq.unpack(request)[0])


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode()


def _attach_failure(error: OSError, queues: int) -> str:
    """Explain why we cannot attach to an interface that exists."""
    # EBUSY: a single queue, which another process has.  E2BIG: as many as there can be.
    if error.errno in (errno.EBUSY, errno.E2BIG):
        return "another process has it: choose another --tap"
    if error.errno == errno.EINVAL:
        kind = "with" if queues > 1 else "without"
        return (
            f"is no TAP {kind} multi_queue, as {queues} queue pair(s) need: choose "
            "another --tap, or remove it"
        )
    return f"the kernel refuses to attach to it: {error.strerror}"
