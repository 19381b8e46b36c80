// SPDX-License-Identifier: GPL-2.0-only
/*
 * uio_vhostpci - QEMU's ivshmem-doorbell device for user space
 *
 * Vectors.  A write of one s32, `vector << 20 | fd`, to the UIO node makes the
 * vector signal an eventfd until the node is closed.  Only this write requests
 * the interrupt, which unmasks the vector; the device keeps an earlier signal
 * pending.  UIO's count of interrupts stays 0, and the only event on the node
 * is that the device is gone.
 *
 * Removal.  The device may be unbound or unplugged at any time.  Its pages are
 * then removed from all mappings (map.c).
 *
 * More than UIO.  Window files (window.c) and ties (ties.c) are asked for by
 * another node (control.c).  Ties end when the UIO node is closed.
 *
 * Locking.  Everything is under the UIO device's info_lock, which the UIO core
 * takes around its callbacks; what more there is, under uio_vhostpci_lock.  A
 * mapping that outlives the driver's binding holds a reference to the
 * uio_device.
 */

#include <linux/io.h>
#include <linux/module.h>

#include "uio_vhostpci.h"

static irqreturn_t uio_vhostpci_interrupt(int irq, void *trigger)
{
	uio_vhostpci_signal(trigger);
	return IRQ_HANDLED;
}

static void uio_vhostpci_disarm(struct uio_vhostpci *dev, int vector)
{
	if (!dev->trigger[vector])
		return;
	pci_free_irq(dev->pdev, vector, dev->trigger[vector]);
	eventfd_ctx_put(dev->trigger[vector]);
	dev->trigger[vector] = NULL;
}

static int uio_vhostpci_arm(struct uio_info *info, s32 request)
{
	struct uio_vhostpci *dev = info->priv;
	struct eventfd_ctx *trigger;
	int vector = request >> 20;
	int err;

	if (vector < 0 || vector >= dev->vectors || dev->stopped)
		return -EINVAL;
	trigger = eventfd_ctx_fdget(request & GENMASK(19, 0));
	if (IS_ERR(trigger))
		return PTR_ERR(trigger);
	uio_vhostpci_disarm(dev, vector);
	err = pci_request_irq(dev->pdev, vector, uio_vhostpci_interrupt, NULL,
			      trigger, "uio_vhostpci[%s]-%d",
			      pci_name(dev->pdev), vector);
	if (err)
		eventfd_ctx_put(trigger);
	else
		dev->trigger[vector] = trigger;
	return err;
}

static int uio_vhostpci_open(struct uio_info *info, struct inode *inode)
{
	struct uio_vhostpci *dev = info->priv;

	if (dev->stopped)
		return -ENODEV;
	if (dev->mapping || !info->uio_dev)	/* or is being registered */
		return -EBUSY;
	mutex_lock(&uio_vhostpci_lock);
	dev->mapping = inode->i_mapping;
	mutex_unlock(&uio_vhostpci_lock);
	return 0;
}

static int uio_vhostpci_release(struct uio_info *info, struct inode *inode)
{
	struct uio_vhostpci *dev = info->priv;

	for (int vector = 0; vector < dev->vectors; vector++)
		uio_vhostpci_disarm(dev, vector);
	mutex_lock(&uio_vhostpci_lock);
	uio_vhostpci_untie_all(dev);
	dev->mapping = NULL;
	mutex_unlock(&uio_vhostpci_lock);
	return 0;
}

/* Runs first when the device is unbound, before the UIO core unregisters it. */
static void uio_vhostpci_stop(void *data)
{
	struct uio_vhostpci *dev = data;

	mutex_lock(&dev->info.uio_dev->info_lock);
	mutex_lock(&uio_vhostpci_lock);
	dev->stopped = true;
	uio_vhostpci_revoke_window(dev);
	mutex_unlock(&uio_vhostpci_lock);
	if (dev->mapping)
		unmap_mapping_range(dev->mapping, 0, 0, 1);
	uio_vhostpci_release(&dev->info, NULL);
	mutex_unlock(&dev->info.uio_dev->info_lock);
}

static int uio_vhostpci_claim(struct uio_vhostpci *dev, int bar, u64 least)
{
	const struct resource *res = &dev->pdev->resource[bar];
	struct uio_mem *mem = &dev->info.mem[bar / 2];
	struct device *device = &dev->pdev->dev;
	u64 size = resource_size(res);

	if (!(res->flags & IORESOURCE_MEM) || size < least)
		return dev_err_probe(device, -ENODEV,
				     "BAR %d has %llu bytes\n", bar, size);
	if (!devm_request_mem_region(device, res->start, size, "uio_vhostpci"))
		return dev_err_probe(device, -EBUSY,
				     "BAR %d is in use, see /proc/iomem\n", bar);
	mem->addr = res->start & PAGE_MASK;
	mem->offs = res->start & ~PAGE_MASK;
	mem->size = PAGE_ALIGN(mem->offs + size);
	return 0;
}

static int uio_vhostpci_map_bars(struct uio_vhostpci *dev)
{
	struct device *device = &dev->pdev->dev;
	const struct resource *window = &dev->pdev->resource[2];
	void *kept;
	int err;

	err = uio_vhostpci_claim(dev, 0, SZ_256) ?:
	      uio_vhostpci_claim(dev, 2, PAGE_SIZE);
	if (err)
		return err;
	if (window->start < SZ_4G && resource_size(window) > SZ_64K)
		dev_warn(device, "BAR 2 is below 4 GiB, so it may be uncached\n");
	kept = devm_memremap(device, window->start, resource_size(window),
			     MEMREMAP_WB);
	if (IS_ERR(kept))
		return dev_err_probe(device, PTR_ERR(kept), "BAR 2\n");
	dev->registers = devm_ioremap(device, dev->pdev->resource[0].start,
				      SZ_256);
	return dev->registers ? 0 : -ENOMEM;
}

static struct uio_vhostpci *uio_vhostpci_alloc(struct pci_dev *pdev,
					       int vectors)
{
	struct uio_vhostpci *dev;

	dev = devm_kzalloc(&pdev->dev, struct_size(dev, trigger, vectors),
			   GFP_KERNEL);
	if (!dev)
		return NULL;
	pci_set_drvdata(pdev, dev);
	INIT_LIST_HEAD(&dev->ties);
	dev->pdev = pdev;
	dev->vectors = vectors;
	dev->info = (struct uio_info) {
		.name = "uio_vhostpci",
		.version = "1",
		.irq = UIO_IRQ_CUSTOM,
		.priv = dev,
		.mem[0] = { .name = "registers", .memtype = UIO_MEM_PHYS },
		.mem[1] = { .name = "window", .memtype = UIO_MEM_IOVA },
		.compat_mmap = uio_vhostpci_mmap,
		.open = uio_vhostpci_open,
		.release = uio_vhostpci_release,
		.irqcontrol = uio_vhostpci_arm,
	};
	return dev;
}

static int uio_vhostpci_probe(struct pci_dev *pdev,
			      const struct pci_device_id *id)
{
	int vectors = pci_msix_vec_count(pdev);
	struct uio_vhostpci *dev;
	int err;

	if (vectors < 0)
		return dev_err_probe(&pdev->dev, -ENODEV,
				     "no MSI-X: ivshmem-plain, not -doorbell\n");
	dev = uio_vhostpci_alloc(pdev, vectors);
	if (!dev)
		return -ENOMEM;
	err = pcim_enable_device(pdev) ?: uio_vhostpci_map_bars(dev);
	if (err)
		return err;
	pci_set_master(pdev);	/* an MSI-X message is a write to memory */
	err = pci_alloc_irq_vectors(pdev, vectors, vectors, PCI_IRQ_MSIX);
	if (err < 0)
		return dev_err_probe(&pdev->dev, err, "%d vectors\n", vectors);
	return uio_vhostpci_enlist(dev) ?:
	       devm_uio_register_device(&pdev->dev, &dev->info) ?:
	       devm_add_action_or_reset(&pdev->dev, uio_vhostpci_stop, dev);
}

/* Signals during a suspend are lost, so signal each eventfd once after it. */
static int uio_vhostpci_resume(struct device *device)
{
	struct uio_vhostpci *dev = dev_get_drvdata(device);

	mutex_lock(&dev->info.uio_dev->info_lock);
	for (int vector = 0; vector < dev->vectors; vector++)
		if (dev->trigger[vector])
			uio_vhostpci_signal(dev->trigger[vector]);
	mutex_unlock(&dev->info.uio_dev->info_lock);
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(uio_vhostpci_pm, NULL, uio_vhostpci_resume);

static const struct pci_device_id uio_vhostpci_ids[] = {
	{ PCI_VDEVICE(REDHAT_QUMRANET, 0x1110) }, { }
};
MODULE_DEVICE_TABLE(pci, uio_vhostpci_ids);

static struct pci_driver uio_vhostpci_driver = {
	.name = "uio_vhostpci",
	.id_table = uio_vhostpci_ids,
	.probe = uio_vhostpci_probe,
	.driver.pm = pm_sleep_ptr(&uio_vhostpci_pm),
};

static int __init uio_vhostpci_init(void)
{
	int err = misc_register(&uio_vhostpci_control);

	if (err)
		return err;
	err = pci_register_driver(&uio_vhostpci_driver);
	if (err)
		misc_deregister(&uio_vhostpci_control);
	return err;
}
module_init(uio_vhostpci_init);

static void __exit uio_vhostpci_exit(void)
{
	pci_unregister_driver(&uio_vhostpci_driver);
	misc_deregister(&uio_vhostpci_control);
}
module_exit(uio_vhostpci_exit);

MODULE_DESCRIPTION("QEMU's ivshmem-doorbell for user space, with a write-back window");
MODULE_LICENSE("GPL");
