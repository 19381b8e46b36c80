# SPDX-License-Identifier: Apache-2.0
"""Numbered frames in one direction: which of those that the kernel took never arrive?

    numbered.py receive INTERFACE   until SIGTERM; then it prints the frames that came
    numbered.py send INTERFACE      until SIGTERM; then it prints those that were taken

They are no IP packets, which would wait for an answer to ARP.  They go past the
queueing discipline, so the kernel says at once that it drops one: the interface has no
carrier, or the TAP's queue is full.
"""

import select
import signal
import socket
import sys
import time

ETHERTYPE = 0x88B5
"""For local experiments (IEEE 802)."""
HEADER = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + ETHERTYPE.to_bytes(2, "big")
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
SO_RCVBUFFORCE = 33
BURST, PAUSE = 40, 0.005
_stopping = False


def _stop(*_: object) -> None:
    global _stopping
    _stopping = True


def receive(sock: socket.socket) -> list[int]:
    """Return the numbers of the frames that came."""
    came = []
    # What is on its way is taken, too, also on a busy machine.
    while not _stopping or select.select([sock], [], [], 1)[0]:
        if select.select([sock], [], [], 0.05)[0]:
            frame = sock.recv(100)
            came.append(int.from_bytes(frame[14:22], "big"))
    return came


def send(sock: socket.socket) -> list[int]:
    """Send frames, and return the numbers of those that were taken."""
    taken = []
    number = 0
    while not _stopping:
        for _ in range(BURST):
            try:
                sock.send(HEADER + number.to_bytes(8, "big") + bytes(40))
                taken.append(number)
            except OSError:
                pass  # not taken
            number += 1
        time.sleep(PAUSE)
    return taken


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Return the same as ranges, each with its first number and the one behind it."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


def main(what: str, interface: str) -> None:
    """Do what the program's arguments say."""
    signal.signal(signal.SIGTERM, _stop)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        # Beyond net.core.rmem_max: what finds no room here would count as lost.
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        sock.bind((interface, ETHERTYPE if what == "receive" else 0))
        print("ready", flush=True)
        numbers = (receive if what == "receive" else send)(sock)
    print(ranges(numbers), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
