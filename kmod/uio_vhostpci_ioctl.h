/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * What programs ask /dev/uio_vhostpci for.  Each request names the device by
 * the descriptor of its UIO node, which shows that the program may use it.
 */
#ifndef UIO_VHOSTPCI_IOCTL_H
#define UIO_VHOSTPCI_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define UIO_VHOSTPCI_MAGIC 0xA7

/**
 * struct uio_vhostpci_tie - An eventfd, and the doorbell that it rings
 * @node:	Descriptor of the UIO node, open for reading and writing
 * @eventfd:	Descriptor of the eventfd
 * @vector:	The peer's vector
 * @peer:	The peer's ID
 */
struct uio_vhostpci_tie {
	__s32 node;
	__s32 eventfd;
	__u16 vector;
	__u16 peer;
};

/* The argument is the UIO node's descriptor; returns that of a window file. */
#define UIO_VHOSTPCI_WINDOW _IO(UIO_VHOSTPCI_MAGIC, 0)
/* From now on, a signal to the eventfd rings the doorbell. */
#define UIO_VHOSTPCI_TIE _IOW(UIO_VHOSTPCI_MAGIC, 1, struct uio_vhostpci_tie)
/* No more, once this has returned; peer and vector do not matter. */
#define UIO_VHOSTPCI_UNTIE _IOW(UIO_VHOSTPCI_MAGIC, 2, struct uio_vhostpci_tie)

#endif
