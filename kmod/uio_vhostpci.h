/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A device, as the parts of the module know it: driver.c (the UIO node), map.c
 * (its mappings), control.c (/dev/uio_vhostpci), window.c (window files) and
 * ties.c.
 */
#ifndef UIO_VHOSTPCI_H
#define UIO_VHOSTPCI_H

#include <linux/eventfd.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/uio_driver.h>

#include "compat.h"
#include "uio_vhostpci_ioctl.h"

struct uio_vhostpci_window;

/**
 * struct uio_vhostpci - A bound device
 * @info:	What the UIO core knows of it
 * @pdev:	The PCI function
 * @registers:	BAR 0, for the ties
 * @mapping:	Of the node, while it is open
 * @list:	In the list of all devices
 * @window:	The window file, if one is open that was not revoked
 * @ties:	The eventfds that ring doorbells
 * @tie_count:	How many they are
 * @stopped:	Whether the driver is being unbound
 * @vectors:	Size of the MSI-X table
 * @trigger:	The eventfd of each vector, or NULL
 *
 * @info and @trigger belong to the UIO device's info_lock; @list, @window,
 * @ties and @tie_count to uio_vhostpci_lock.  Who changes @mapping or @stopped
 * has both.  info_lock is taken first.
 */
struct uio_vhostpci {
	struct uio_info info;
	struct pci_dev *pdev;
	void __iomem *registers;
	struct address_space *mapping;
	struct list_head list;
	struct uio_vhostpci_window *window;
	struct list_head ties;
	unsigned int tie_count;
	bool stopped;
	int vectors;
	struct eventfd_ctx *trigger[];
};

extern struct mutex uio_vhostpci_lock;
extern struct miscdevice uio_vhostpci_control;

int uio_vhostpci_enlist(struct uio_vhostpci *dev);

vm_fault_t uio_vhostpci_insert(struct vm_fault *vmf);
int uio_vhostpci_mmap(struct uio_info *info, struct compat_area *area);

int uio_vhostpci_open_window(struct uio_vhostpci *dev);
void uio_vhostpci_revoke_window(struct uio_vhostpci *dev);

int uio_vhostpci_tie(struct uio_vhostpci *dev,
		     const struct uio_vhostpci_tie *request);
int uio_vhostpci_untie(struct uio_vhostpci *dev,
		       const struct uio_vhostpci_tie *request);
void uio_vhostpci_untie_all(struct uio_vhostpci *dev);

#endif
