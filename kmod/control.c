// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/uio_vhostpci: what UIO has no way to ask for
 *
 * A UIO node knows neither ioctl() nor lseek().  So there is one node besides,
 * for all devices, which gives nothing by itself: a program that asks must have
 * the device's UIO node open, and shows its descriptor.  That node is open once
 * at a time, so its inode tells the device.
 */

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/uaccess.h>

#include "uio_vhostpci.h"

DEFINE_MUTEX(uio_vhostpci_lock);	/* struct uio_vhostpci says for what */
static LIST_HEAD(uio_vhostpci_devices);

static void uio_vhostpci_delist(void *data)
{
	struct uio_vhostpci *dev = data;

	mutex_lock(&uio_vhostpci_lock);
	list_del(&dev->list);
	mutex_unlock(&uio_vhostpci_lock);
}

/**
 * uio_vhostpci_enlist() - Let requests find a device, until it is unbound
 * @dev:	Device that has no UIO node yet
 *
 * Return: 0 or -ENOMEM
 */
int uio_vhostpci_enlist(struct uio_vhostpci *dev)
{
	mutex_lock(&uio_vhostpci_lock);
	list_add(&dev->list, &uio_vhostpci_devices);
	mutex_unlock(&uio_vhostpci_lock);
	return devm_add_action_or_reset(&dev->pdev->dev, uio_vhostpci_delist,
					dev);
}

/* The device stays while the lock is held: stop and release wait for it. */
static struct uio_vhostpci *uio_vhostpci_find(int node)
{
	struct uio_vhostpci *found = ERR_PTR(-ENODEV);
	struct file *file = fget(node);
	struct uio_vhostpci *dev;

	if (!file)
		return ERR_PTR(-EBADF);
	list_for_each_entry(dev, &uio_vhostpci_devices, list)
		if (dev->mapping == file->f_mapping && !dev->stopped)
			found = dev;
	/* A window file can be written to, and a tie writes a register. */
	if (!(file->f_mode & FMODE_READ) || !(file->f_mode & FMODE_WRITE))
		found = ERR_PTR(-EACCES);
	fput(file);
	return found;
}

static long uio_vhostpci_do(unsigned int command,
			    const struct uio_vhostpci_tie *request)
{
	struct uio_vhostpci *dev = uio_vhostpci_find(request->node);

	if (IS_ERR(dev))
		return PTR_ERR(dev);
	switch (command) {
	case UIO_VHOSTPCI_WINDOW:
		return uio_vhostpci_open_window(dev);
	case UIO_VHOSTPCI_TIE:
		return uio_vhostpci_tie(dev, request);
	default:
		return uio_vhostpci_untie(dev, request);
	}
}

static long uio_vhostpci_ioctl(struct file *file, unsigned int command,
			       unsigned long arg)
{
	struct uio_vhostpci_tie request = { .node = arg };
	long ret;

	switch (command) {
	case UIO_VHOSTPCI_WINDOW:
		break;
	case UIO_VHOSTPCI_TIE:
	case UIO_VHOSTPCI_UNTIE:
		if (copy_from_user(&request, (void __user *)arg,
				   sizeof(request)))
			return -EFAULT;
		break;
	default:
		return -ENOTTY;
	}
	mutex_lock(&uio_vhostpci_lock);
	ret = uio_vhostpci_do(command, &request);
	mutex_unlock(&uio_vhostpci_lock);
	return ret;
}

static const struct file_operations uio_vhostpci_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = uio_vhostpci_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

struct miscdevice uio_vhostpci_control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "uio_vhostpci",
	.fops = &uio_vhostpci_fops,
};
