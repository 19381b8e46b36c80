# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of an interface by rtnetlink(7): its bridge, kind and state.

pyroute2 would decode all that the kernel says of an interface, which takes
milliseconds.  The status asks for each device, in the agent's loop, while a daemon may
wait for an answer.
"""

import errno
import os
import socket
import struct

_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_RTM_GETLINK = 18
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO = 3, 10, 18
_IFLA_INFO_KIND = 1
_IFF_RUNNING = 0x40
_NESTED = 0x8000
"""The flag of an attribute that holds others; old kernels do not set it."""

_nlmsghdr = struct.Struct("=IHHII")
_ifinfomsg = struct.Struct("=BxHiII")
_rtattr = struct.Struct("=HH")
_number = struct.Struct("=I")
_LONGEST = 1 << 16  # of an answer: an interface with many VFs has some KiB


def bridge_of(index: int) -> str | None:
    """Return the name of the bridge that an interface is in; None if it is in none.

    Args:
        index: the interface's, in the network namespace of this thread.

    Raises:
        OSError: there is no such interface.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as ask:
        master = _attributes(ask, index).get(_IFLA_MASTER)
        if master is None:
            return None
        found = _attributes(ask, _number.unpack(master)[0])
    return bridge_name(found)


def bridge_name(attributes: dict[int, bytes]) -> str | None:
    """Return the name of an interface that has others; None if it is no bridge."""
    # A bond, a VRF and a team have interfaces in the same way.
    kind = _parse(attributes.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    return _text(attributes[_IFLA_IFNAME]) if _text(kind) == "bridge" else None


def kind_of(index: int) -> str:
    """Return the kind of an interface, as "tun" or "bridge"; empty for a card.

    Raises:
        OSError: there is no such interface.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as ask:
        info = _attributes(ask, index).get(_IFLA_LINKINFO, b"")
    return _text(_parse(info).get(_IFLA_INFO_KIND, b""))


def runs(index: int) -> bool:
    """Whether the kernel sends packets to an interface.

    Linux turns its queues off up to a second after its carrier has gone; since 6.8 it
    does so before it answers this (SIOCGIFFLAGS does not wait for that).

    Raises:
        OSError: there is no such interface.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as ask:
        _, _, _, flags, _ = _ifinfomsg.unpack_from(_link(ask, index))
    return bool(flags & _IFF_RUNNING)


def _attributes(ask: socket.socket, index: int) -> dict[int, bytes]:
    """Return what the kernel says of an interface, by the number of the attribute."""
    return _parse(_link(ask, index)[_ifinfomsg.size :])


def _link(ask: socket.socket, index: int) -> bytes:
    """Return what the kernel says of an interface: `_ifinfomsg` and attributes."""
    request = _ifinfomsg.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    size = _nlmsghdr.size + len(request)
    ask.send(_nlmsghdr.pack(size, _RTM_GETLINK, _NLM_F_REQUEST, 0, 0) + request)
    answer = ask.recv(_LONGEST)
    size, kind, *_ = _nlmsghdr.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _nlmsghdr.size)[0]
        raise OSError(number or errno.EIO, os.strerror(number or errno.EIO))
    return answer[_nlmsghdr.size : size]


def _parse(data: bytes) -> dict[int, bytes]:
    """Split attributes; each is aligned to four bytes."""
    found = {}
    while len(data) >= _rtattr.size:
        size, kind = _rtattr.unpack_from(data)
        if size < _rtattr.size:  # it would be read without end
            raise OSError(errno.EBADMSG, f"an attribute of {size} bytes")
        found[kind & ~_NESTED] = data[_rtattr.size : size]
        data = data[-(-size // 4) * 4 :]
    return found


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode()
