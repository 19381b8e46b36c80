// SPDX-License-Identifier: GPL-2.0-only
/*
 * Window files: BAR 2 as a file that a program can give to another one
 *
 * A vhost-user back-end maps what it is given from offset 0, and may ask for
 * the length by lseek().  Neither works with a UIO node, whose descriptor would
 * also keep the next program from opening it.  A window file has BAR 2, and
 * nothing else: no registers, no interrupts, no control.
 *
 * Revoking.  A device has one window file at a time.  It is revoked when the
 * driver is unbound, and when the next one is opened: what a program left with
 * others when it was killed ends before its successor gives away a new one.
 * Then the pages are removed from all mappings, and an access is a SIGBUS.  It
 * is not revoked when the UIO node is closed, since a back-end whose agent died
 * would be killed by a SIGBUS before it can notice that.
 *
 * Not a dma-buf, which is nearly the same: that leaves the choice of the address
 * to the kernel, which aligns it for huge pages only by chance, and it is there
 * only in kernels that have CONFIG_DMA_SHARED_BUFFER.
 *
 * Each has its own inode, of a file system that cannot be mounted, so that its
 * mappings can be told from all others.
 */

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>
#include <linux/slab.h>

#include "uio_vhostpci.h"

#define UIO_VHOSTPCI_FS_MAGIC 0x76687063 /* "vhpc" */

/**
 * struct uio_vhostpci_window - What a window file shows
 * @dev:	The device; NULL once it is revoked
 * @mapping:	Of the file
 * @pfn:	Where BAR 2 begins
 * @size:	Bytes
 */
struct uio_vhostpci_window {
	struct uio_vhostpci *dev;
	struct address_space *mapping;
	unsigned long pfn;
	loff_t size;
};

static struct vfsmount *uio_vhostpci_mount;
static int uio_vhostpci_mount_count;

static int uio_vhostpci_init_fs(struct fs_context *fc)
{
	return init_pseudo(fc, UIO_VHOSTPCI_FS_MAGIC) ? 0 : -ENOMEM;
}

static struct file_system_type uio_vhostpci_fs = {
	.name = "uio_vhostpci",
	.owner = THIS_MODULE,
	.init_fs_context = uio_vhostpci_init_fs,
	.kill_sb = kill_anon_super,
};

static vm_fault_t uio_vhostpci_window_fault(struct vm_fault *vmf)
{
	struct uio_vhostpci_window *window = vmf->vma->vm_file->private_data;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	/* Not while it is revoked: a page inserted after that would stay. */
	mutex_lock(&uio_vhostpci_lock);
	if (window->dev)
		ret = uio_vhostpci_insert(vmf);
	mutex_unlock(&uio_vhostpci_lock);
	return ret;
}

static const struct vm_operations_struct uio_vhostpci_window_vm_ops = {
	.fault = uio_vhostpci_window_fault,
};

static int uio_vhostpci_window_mmap(struct file *file,
				    struct vm_area_struct *vma)
{
	struct uio_vhostpci_window *window = file->private_data;
	unsigned long pages = PHYS_PFN(window->size);
	bool revoked;

	/* A private mapping could copy pages, and a BAR has none to copy. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff >= pages || vma_pages(vma) > pages - vma->vm_pgoff)
		return -EINVAL;
	mutex_lock(&uio_vhostpci_lock);
	revoked = !window->dev;
	mutex_unlock(&uio_vhostpci_lock);
	if (revoked)
		return -ENODEV;
	vma->vm_pgoff += window->pfn;	/* right in a split, too */
	vma->vm_ops = &uio_vhostpci_window_vm_ops;
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	return 0;
}

static loff_t uio_vhostpci_window_llseek(struct file *file, loff_t offset,
					 int whence)
{
	struct uio_vhostpci_window *window = file->private_data;

	return fixed_size_llseek(file, offset, whence, window->size);
}

static int uio_vhostpci_window_release(struct inode *inode, struct file *file)
{
	struct uio_vhostpci_window *window = file->private_data;

	mutex_lock(&uio_vhostpci_lock);
	if (window->dev)
		window->dev->window = NULL;
	mutex_unlock(&uio_vhostpci_lock);
	kfree(window);
	simple_release_fs(&uio_vhostpci_mount, &uio_vhostpci_mount_count);
	return 0;
}

static const struct file_operations uio_vhostpci_window_fops = {
	.owner = THIS_MODULE,
	.mmap = uio_vhostpci_window_mmap,
	.get_unmapped_area = thp_get_unmapped_area,
	.llseek = uio_vhostpci_window_llseek,
	.release = uio_vhostpci_window_release,
};

/* The name is what /proc/PID/maps shows of it. */
static struct file *uio_vhostpci_window_file(const char *name, loff_t size)
{
	struct inode *inode;
	struct file *file;
	int err;

	err = simple_pin_fs(&uio_vhostpci_fs, &uio_vhostpci_mount,
			    &uio_vhostpci_mount_count);
	if (err)
		return ERR_PTR(err);
	inode = alloc_anon_inode(uio_vhostpci_mount->mnt_sb);
	if (IS_ERR(inode)) {
		file = ERR_CAST(inode);
		goto err_fs;
	}
	i_size_write(inode, size);	/* for programs that ask fstat() */
	file = alloc_file_pseudo(inode, uio_vhostpci_mount, name, O_RDWR,
				 &uio_vhostpci_window_fops);
	if (IS_ERR(file))
		goto err_inode;
	__module_get(THIS_MODULE);	/* the last fput() puts it */
	return file;

err_inode:
	iput(inode);
err_fs:
	simple_release_fs(&uio_vhostpci_mount, &uio_vhostpci_mount_count);
	return file;
}

/**
 * uio_vhostpci_revoke_window() - Take BAR 2 from all that have it by the file
 * @dev:	Device; the caller holds uio_vhostpci_lock
 */
void uio_vhostpci_revoke_window(struct uio_vhostpci *dev)
{
	struct uio_vhostpci_window *window = dev->window;

	if (!window)
		return;
	window->dev = NULL;
	dev->window = NULL;
	unmap_mapping_range(window->mapping, 0, 0, 1);
}

/**
 * uio_vhostpci_open_window() - Make a window file, and revoke the one before
 * @dev:	Device; the caller holds uio_vhostpci_lock
 *
 * Return: a descriptor, or -errno
 */
int uio_vhostpci_open_window(struct uio_vhostpci *dev)
{
	const struct resource *bar = &dev->pdev->resource[2];
	struct uio_vhostpci_window *window;
	char name[32];
	struct file *file;
	int fd;

	window = kzalloc(sizeof(*window), GFP_KERNEL_ACCOUNT);
	if (!window)
		return -ENOMEM;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto err_free;
	snprintf(name, sizeof(name), "vhostpci:%s", pci_name(dev->pdev));
	file = uio_vhostpci_window_file(name, resource_size(bar));
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto err_free;
	}
	uio_vhostpci_revoke_window(dev);
	window->dev = dev;
	window->mapping = file->f_mapping;
	window->pfn = PHYS_PFN(bar->start);
	window->size = resource_size(bar);
	dev->window = window;
	file->private_data = window;
	fd_install(fd, file);
	return fd;

err_free:
	kfree(window);
	return fd;
}
