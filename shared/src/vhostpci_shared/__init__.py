# SPDX-License-Identifier: Apache-2.0
"""The byte formats that vhostpci's host daemon and guest agent share.

Most modules turn bytes into frozen dataclasses and back, and neither open, read nor
wait for anything.

* `vhost_user`: the messages of a vhost-user front-end (QEMU) and their replies
* `virtio`: feature bits, and the sizes of a virtqueue's areas
* `ivshmem`: the messages of an ivshmem server
* `metadata`: the layout of the region in window 0 that daemon and agent talk through
* `access`: reading and writing that region while the other side writes it too
* `relay_thread`: the C thread that passes signals on
* `wire`: the error that all of them raise for bad bytes
"""

__version__ = "0.1.0"
