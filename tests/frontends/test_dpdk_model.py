# SPDX-License-Identifier: Apache-2.0
"""DPDK's driver returns each packet: all come back, in order, once, whatever it chose.

   a program ── slave's TAP ── agent ── rings ── virtio-user, `macswap`
 (numbered frames)

tests/unit/guest/dataplane/test_ring_model.py has the same check with our driver.
"""

import random
import sys
from pathlib import Path

import pytest

from tests.frontends.testpmd import MAC, NO_HUGE, Testpmd
from tests.process.attach import AttachLab
from tests.process.lab import SLAVE_TAP

pytestmark = pytest.mark.frontends

PACKETS = 20_000

LOOP = """
import random, socket, sys
tap, mac = sys.argv[1], bytes.fromhex(sys.argv[2])
count, seed, most = map(int, sys.argv[3:])
draw = random.Random(seed).randint
OUTGOING = 4  # PACKET_OUTGOING: what we have sent ourselves
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
sock.bind((tap, 0x88B5))
sock.settimeout(20)
sent = came = 0
waiting = {}
while came < count:
    while sent < count and len(waiting) < most:
        number = sent.to_bytes(4, "big")
        frame = mac + b"\\2\\0\\0\\0\\0\\1" + b"\\x88\\xb5" + number * draw(12, 375)
        waiting[sent] = frame
        sock.send(frame)
        sent += 1
    try:
        data, (_, _, kind, *_) = sock.recvfrom(65536)
    except TimeoutError:
        sys.exit(f"{sent} were sent, and {came} came")
    if kind == OUTGOING:
        continue
    number = int.from_bytes(data[14:18], "big")
    assert number == came, f"{number} came, and {came} was next"
    assert data[14:] == waiting.pop(number)[14:], f"{number} has changed"
    came += 1
print("all came")
"""


@pytest.mark.parametrize("seed", range(5))
def test_all_packets_come_back_in_order_and_once(
    lab: AttachLab, tmp_path: Path, seed: int
) -> None:
    choose = random.Random(seed).choice
    size = choose((128, 256, 1024))
    features = ("mrg_rxbuf", "in_order")
    options = "".join(f",{name}={choose((0, 1))}" for name in features)
    # Odd seeds have packed rings.
    options += f",packed_vq={seed % 2},queue_size={size}"
    lab.start()
    with Testpmd(
        lab.socket, tmp_path, NO_HUGE, forward="macswap", options=options
    ) as pmd:
        pmd.started()
        lab.wait_carrier("UP")
        # More would fill its transmit queue, and then it drops what it forwards.
        numbers = map(str, (PACKETS, seed, size // 4))
        words = (SLAVE_TAP, MAC.replace(":", ""), *numbers)
        loop = lab.start_server([*lab.slave.prefix, sys.executable, "-c", LOOP, *words])
        # It stops looking at its rings for a moment, again and again.
        while loop.process.poll() is None:
            pmd.run("stop")
            pmd.run("start")
        assert loop.wait() == 0, loop.log
        assert pmd.quit() == 0
    assert "all came" in loop.log
