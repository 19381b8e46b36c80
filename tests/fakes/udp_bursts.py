# SPDX-License-Identifier: Apache-2.0
"""Two small programs: one sends bursts of UDP datagrams, the other counts them.

A burst is one call with UDP_SEGMENT, so the kernel may leave it to the network card to
make datagrams of it.  Each datagram has other data.
"""

SIZE, BURST, BURSTS = 1400, 40, 20
DATAGRAMS = BURST * BURSTS

_SEND = """
import socket, sys, time
address, size, burst, bursts = sys.argv[1], *map(int, sys.argv[2:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(17, 103, size)  # SOL_UDP, UDP_SEGMENT
    for n in range(bursts):
        parts = [(n * burst + i).to_bytes(4, "big") * (size // 4) for i in range(burst)]
        sock.sendto(b"".join(parts), (address, 9000))
        time.sleep(0.05)
"""
_RECEIVE = """
import socket, sys
size, count = map(int, sys.argv[1:])
got = set()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
    sock.settimeout(10)
    sock.bind(("", 9000))
    print("ready", flush=True)
    try:
        while len(got) < count:
            data = sock.recv(65536)
            if data == data[:4] * (size // 4):
                got.add(data[:4])
    except TimeoutError:
        pass
print("lost", count - len(got))
"""


def send(address: str) -> list[str]:
    """Return the arguments of Python that send all bursts to an address."""
    return ["-c", _SEND, address, str(SIZE), str(BURST), str(BURSTS)]


def receive() -> list[str]:
    """Return the arguments of Python that print "ready", and last what was lost."""
    return ["-c", _RECEIVE, str(SIZE), str(DATAGRAMS)]
