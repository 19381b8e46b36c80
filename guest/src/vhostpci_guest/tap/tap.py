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
from typing import TypeVar

from ..errors import Unusable
from ..net_options import Offload
from .membership import kind_of
from .requests import (
    IFF_TUN_EXCL,
    NODE,
    RENAMED,
    TUNGETIFF,
    TUNSETIFF,
    WRITE,
    LocalRequests,
    Requests,
    current_name,
    ifreq,
    index,
    ioc,
)
from .settings import Address, TapConfig

__all__ = ["DEFAULT_NAME", "NODE", "TUNGETIFF", "TUNSETIFF", "Tap"]

T = TypeVar("T")

DEFAULT_NAME = "vp%d"

TUNSETPERSIST = ioc(WRITE, 203, 4)
TUNSETOFFLOAD = ioc(WRITE, 208, 4)
TUNSETVNETHDRSZ = ioc(WRITE, 216, 4)
TUNSETQUEUE = ioc(WRITE, 217, 4)
TUNSETCARRIER = ioc(WRITE, 226, 4)
_SIOCGIFHWADDR = 0x8927  # linux/sockios.h
_SIOCSIFHWADDR = 0x8924

IFF_TAP = 0x0002
IFF_NO_CARRIER = 0x0040  # since Linux 6.1; earlier ones ignore it
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

_ifreq_mac = struct.Struct("=16sH6s16x")
_ARPHRD_ETHER = 1

_MOST_WAITING = 1 << 16
"""Packets that may wait in a queue: its length (1000, or what the user has set)."""


class Tap:
    """A TAP with a descriptor for each queue pair, ready for `readv` and `writev`.

    Args:
        name: its name or pattern; a TAP of this name may exist if it is free.
        queues: how many queue pairs.
        new: refuse a TAP that exists.
        requests: makes what needs CAP_NET_ADMIN.

    Raises:
        Unusable: the TAP cannot be made or attached to.
    """

    def __init__(
        self,
        name: str,
        queues: int,
        *,
        new: bool = False,
        requests: Requests | None = None,
    ) -> None:
        self._requests = LocalRequests() if requests is None else requests
        self._undo = ExitStack()
        with ExitStack() as undo:
            first, self._name, self.made = self._attach_first(name, queues, new)
            undo.callback(os.close, first)
            self.ours = self.made
            """Whether an agent made it, this one or an earlier one."""
            self.fds: tuple[int, ...] = (first,)
            for _ in range(queues - 1):
                self.fds += (self._attach_further(_flags(queues)),)
                undo.callback(os.close, self.fds[-1])
            self._undo = undo.pop_all()
        # Before Linux 6.1, to attach to a TAP turns its carrier on.  It stays off until
        # the master's rings run, so that the slave does not send into queues that no
        # worker reads.
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

    def _attach_first(self, name: str, queues: int, new: bool) -> tuple[int, str, bool]:
        """Make the TAP or attach to one that exists.

        Return its descriptor, its name, and whether we made it.
        """
        flags = _flags(queues)
        # TUN_EXCL first: one call without it would not tell whether the TAP was there,
        # and a TAP of the user's keeps its MAC.
        try:
            return *self._requests.attach(name, flags | IFF_TUN_EXCL), True
        except OSError as error:
            # Only for a name that does not exist: else the kernel says EBUSY, and a
            # user who owns the TAP may attach to it without the capability.
            if error.errno == errno.EPERM:
                raise Unusable(
                    "making a TAP needs CAP_NET_ADMIN: run as root", code="G143"
                ) from None
            if error.errno != errno.EBUSY or new:
                raise Unusable(f"TAP {name}: {error.strerror}", code="G144") from error
        try:
            return *self._requests.attach(name, flags), False
        except OSError as error:
            why = _attach_failure(error, name, queues)
            raise Unusable(f"TAP {name} exists, and {why}", code="G145") from error

    def _attach_further(self, flags: int) -> int:
        """Attach another queue to the TAP of the first one; return its descriptor."""
        for _ in range(RENAMED):
            # By the name of now: a pattern, or an old name, would make another TAP.
            name = self._current_name()
            fd, _name = self._requests.attach(name, flags)
            if self._current_name() == name:
                return fd
            # It was renamed between the two: `fd` has made a TAP with the old name.
            os.close(fd)
        raise Unusable(
            f"TAP {self.name} is renamed all the time: try again", code="G146"
        )

    @property
    def name(self) -> str:
        """The name of now; the last one if the TAP was deleted or is closed."""
        if self.fds:
            with suppress(Unusable):
                self._name = self._current_name()
        return self._name

    def _current_name(self) -> str:
        return self._request(current_name)

    def _request(self, action: Callable[[int], T]) -> T:
        """Do something with the TAP, by its first descriptor.

        Raises:
            Unusable: the TAP was deleted.
        """
        try:
            return action(self.fds[0])
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise self._gone() from None
            raise

    @property
    def moved(self) -> bool:
        """Whether another program moved the TAP to another network namespace."""
        return self._request(self._requests.moved)

    def index(self) -> int:
        """Return the interface index, in the network namespace of the TAP.

        Call it in that namespace.

        Raises:
            Unusable: the TAP was deleted.
        """
        return self._request(index)

    @property
    def bridge(self) -> str | None:
        """The name of the bridge that the TAP is in now; None if it is in none.

        Raises:
            Unusable: the TAP was deleted.
            OSError: it was deleted, or moved, just now.
        """
        return self._request(self._requests.bridge)

    @property
    def dropped(self) -> int:
        """How many packets the kernel has dropped because the queues were full.

        Raises:
            Unusable: the TAP was deleted.
            OSError: it was deleted, or moved, just now.
        """
        return self._request(self._requests.dropped)

    def join(self, bridge: str, index: int) -> None:
        """Add the TAP to a bridge.

        Args:
            bridge: its name, for an error.
            index: its interface index.

        Raises:
            Unusable: the TAP was deleted, or the kernel refuses.
        """
        self._set(f"to join bridge {bridge}", master=index)

    def leave_bridge(self) -> None:
        """Take the TAP out of the bridge that it is in.

        Raises:
            Unusable: the TAP was deleted, or the kernel refuses.
        """
        self._set("to leave its bridge", master=0)

    def rename(self, name: str) -> None:
        """Give the TAP another name, while it is up.

        Raises:
            Unusable: the TAP was deleted, or the kernel refuses.
        """
        try:
            self._set(f"the name {name}", ifname=name)
        except Unusable as why:
            raise Unusable(
                f"{why}; before Linux 6.2 it renames no TAP that is up: restart the "
                f"agent, or ip link set {self.name} down, reload, and set it up again",
                code="G147",
            ) from None

    def _set(self, what: str, **attributes: str | int) -> None:
        self._request(lambda fd: self._requests.set(fd, what, attributes))

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
            self._ioctl(TUNSETQUEUE, ifreq.pack(b"", flag), queue=index)
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
        answer = bytearray(ifreq.size)  # ioctl() writes the answer into it
        self._ioctl(request, answer)
        return bytes(answer)

    def _gone(self) -> Unusable:
        return Unusable(
            f"TAP {self._name} is gone: another program deleted it", code="G148"
        )

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
            self.add_address(address)
        # Last: from here on the kernel sends its first packets, which have the MAC.
        self._set("to set it up", state="up")

    def add_address(self, address: Address) -> None:
        """Give the TAP an address, if it does not have it.

        Raises:
            Unusable: the TAP was deleted, or the kernel refuses.
        """
        length = address.network.prefixlen
        self._request(
            lambda fd: self._requests.add_address(fd, str(address.ip), length)
        )

    def remove_address(self, address: Address) -> None:
        """Take an address from the TAP, if it has it.

        Raises:
            Unusable: the TAP was deleted, or the kernel refuses.
        """
        length = address.network.prefixlen
        self._request(
            lambda fd: self._requests.remove_address(fd, str(address.ip), length)
        )

    @property
    def mtu(self) -> int:
        """The MTU of now: the user may have changed it (ip link set mtu).

        Raises:
            Unusable: the TAP was deleted.
        """
        return self._request(self._requests.mtu)

    @property
    def idle(self) -> bool:
        """Whether no packet waits in a queue, and the kernel puts no further one there.

        The kernel goes on sending for some time after the carrier has gone.

        Raises:
            Unusable: the TAP was deleted.
        """
        # First: no packet can come after this.
        sends = self._request(self._requests.sends)
        poll = select.poll()
        for fd in self.fds:
            poll.register(fd, select.POLLIN)
        return not sends and not poll.poll(0)

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


def _flags(queues: int) -> int:
    # NO_PI: no four bytes of flags and protocol before a packet.  VNET_HDR: each read
    # and write begins with a virtio-net header, as each packet in the master's buffers
    # does.  With it checksum and segmentation offload reach the other side.
    # NO_CARRIER: what the kernel would take before we turned the carrier off is thrown
    # away when the rings start.
    flags = IFF_TAP | IFF_NO_CARRIER | IFF_NO_PI | IFF_VNET_HDR
    # The flag must be the same as when the TAP was made (else EINVAL).  A TAP that the
    # user made with the defaults of `ip tuntap` is one without multi_queue.
    return flags | IFF_MULTI_QUEUE if queues > 1 else flags


def _attach_failure(error: OSError, name: str, queues: int) -> str:
    """Explain why we cannot attach to an interface that exists."""
    # EBUSY: a single queue, which another process has.  E2BIG: as many as there can be.
    if error.errno in (errno.EBUSY, errno.E2BIG):
        return "another process has it: choose another --tap"
    # It has an owner or a group (ip tuntap add ... user NAME).
    if error.errno == errno.EPERM:
        return "is another user's: run as that user or as root, or choose another --tap"
    if error.errno == errno.EINVAL:
        with suppress(OSError):  # it is gone, or in another network namespace
            found = kind_of(socket.if_nametoindex(name))
            if found != "tun":
                return f"is no TAP but {found or 'a card'}: choose another --tap"
        kind = "with" if queues > 1 else "without"
        return (
            f"is no TAP {kind} multi_queue, as {queues} queue pair(s) need: choose "
            "another --tap, or remove it"
        )
    return f"the kernel refuses to attach to it: {error.strerror}"
