# SPDX-License-Identifier: Apache-2.0
"""The throughput of the same two guests over stock QEMU's TAPs, to compare with.

  guest A                                         guest B
virtio-net === TAP --- Linux bridge --- TAP === virtio-net
              (a network namespace of our own)

python -m tests.vm.yardstick [--seconds N]
"""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm import image, qemu, traffic
from tests.vm.harness import Vm
from tests.vm.netns import Namespace

ADDRESSES = {"a": "10.78.0.1", "b": "10.78.0.2"}


@contextmanager
def bridged_guests(logs: Path) -> Iterator[tuple[Vm, Vm]]:
    """Two guests on one bridge, with addresses."""
    guest = image.build()
    with Namespace() as namespace:
        namespace.run("ip link add br0 type bridge")
        namespace.run("ip link set br0 up")
        for name in ADDRESSES:
            namespace.run(f"ip tuntap add tap-{name} mode tap vnet_hdr")
            namespace.run(f"ip link set tap-{name} up master br0")
        a, b = (
            Vm(name, guest, logs=logs, args=_tap(name), namespace=namespace)
            for name in ADDRESSES
        )
        with a, b:
            for vm, address in zip((a, b), ADDRESSES.values(), strict=True):
                vm.wait_ready()
                vm.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")
            yield a, b


def measure(seconds: int) -> dict[str, float]:
    """Mbit/s by direction, and the round trip in milliseconds."""
    with TemporaryDirectory() as logs, bridged_guests(Path(logs)) as (a, b):
        rtt = traffic.ping(a, ADDRESSES["b"], apart=True).rtt_ms_avg
        with traffic.iperf_server(b):
            up = traffic.tcp(a, ADDRESSES["b"], seconds)
        with traffic.iperf_server(a):
            down = traffic.tcp(b, ADDRESSES["a"], seconds)
    return {"tcp_a_to_b": up, "tcp_b_to_a": down, "rtt_ms": rtt or 0.0}


def _tap(name: str) -> list[str]:
    mac = f"52:54:00:78:00:0{list(ADDRESSES).index(name) + 1}"
    return [
        *("-netdev", f"tap,id=net0,ifname=tap-{name},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={mac}"),
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.yardstick")
    parser.add_argument("--seconds", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    figures = measure(arguments.seconds)
    accelerator = "KVM" if qemu.has_kvm() else "TCG"
    print(f"-netdev tap on a bridge, QEMU {qemu.version()}, {accelerator}")
    print(f"  TCP a to b  {figures['tcp_a_to_b']:8.0f} Mbit/s")
    print(f"  TCP b to a  {figures['tcp_b_to_a']:8.0f} Mbit/s")
    print(f"  ping        {figures['rtt_ms']:8.2f} ms")


if __name__ == "__main__":
    main()
