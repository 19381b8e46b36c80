# SPDX-License-Identifier: Apache-2.0
"""The byte formats that vhostpci's host daemon and guest agent share.

No input or output, no state: bytes in, frozen dataclasses out, and back.

* `vhost_user`: the messages of a vhost-user front-end (QEMU) and their replies
* `virtio`: feature bits, sizes of a ring's areas
* `ivshmem`: the messages of an ivshmem server
* `metadata`: the region in window 0 that daemon and agent talk through
* `access`: how that region is read and written while the other side may write
"""

__version__ = "0.1.0"
