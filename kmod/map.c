// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings of the UIO node: both BARs, page by page
 *
 * Mappings.  Map 0 is BAR 0; map 1 is BAR 2, the window, which is memory.  The
 * kernel keeps it mapped write-back, which reserves that memory type for it:
 * without a reservation, vmf_insert_pfn() makes the pages of a BAR uncached.
 *
 * Removal.  The device may be unbound or unplugged at any time.  Its pages are
 * then removed from all mappings, so that a later access is a SIGBUS, and not
 * an access to the next device at that address.  Page faults insert the pages,
 * since unmap_mapping_range() does not find a mapping before mmap() has ended.
 *
 * Huge pages.  From Linux 6.12 on the window is mapped by pages of 2 MiB, where
 * its address in the program is aligned as the BAR is.  Earlier kernels do not
 * mark such a page as one of a BAR: who pins it would look for its struct page.
 * munmap(), mprotect() and mremap() of a part remove a huge page, and the next
 * fault inserts small ones.  They are inserted by the usual fault, as .huge_fault
 * is called only where transparent huge pages are enabled, which they are not in
 * a VM with less than 512 MiB.
 */

#include <linux/io.h>

#include "uio_vhostpci.h"

/**
 * uio_vhostpci_insert() - Insert a huge page, or what one page table can have
 * @vmf:	Fault in a mapping whose page offset is the address of the BAR;
 *		the caller keeps the device bound
 *
 * Return: VM_FAULT_NOPAGE, or why not
 */
vm_fault_t uio_vhostpci_insert(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long at = max(vmf->address & PMD_MASK, vma->vm_start);
	unsigned long end = min((vmf->address | ~PMD_MASK) + 1, vma->vm_end);
	unsigned long pfn = vma->vm_pgoff + PHYS_PFN(at - vma->vm_start);
	vm_fault_t ret = VM_FAULT_NOPAGE;

	/* There is a page table where a part was mapped by small pages. */
	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP) &&
	    end - at == PMD_SIZE && IS_ALIGNED(pfn, PHYS_PFN(PMD_SIZE)) &&
	    pmd_none(*vmf->pmd))
		return vmf_insert_pfn_pmd(vmf, compat_pfn(pfn),
					  vmf->flags & FAULT_FLAG_WRITE);
	for (; at < end && ret == VM_FAULT_NOPAGE; at += PAGE_SIZE)
		ret = vmf_insert_pfn(vma, at, pfn++);
	return ret;
}

static vm_fault_t uio_vhostpci_fault(struct vm_fault *vmf)
{
	struct uio_device *uio = vmf->vma->vm_private_data;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct uio_vhostpci *dev;

	mutex_lock(&uio->info_lock);
	dev = uio->info ? uio->info->priv : NULL;
	if (dev && !dev->stopped)
		ret = uio_vhostpci_insert(vmf);
	mutex_unlock(&uio->info_lock);
	return ret;
}

static const struct vm_operations_struct uio_vhostpci_vm_ops = {
	.fault = uio_vhostpci_fault,
};

/* The UIO core has found the map by the page offset, and checked the size. */
int uio_vhostpci_mmap(struct uio_info *info, struct compat_area *area)
{
	const struct uio_mem *mem = &info->mem[compat_pgoff(area)];

	if (!compat_is_shared(area))
		return -EINVAL;
	if (mem->memtype == UIO_MEM_PHYS)
		compat_prot(area) = pgprot_noncached(compat_prot(area));
	compat_pgoff(area) = PHYS_PFN(mem->addr);	/* right in a split, too */
	compat_private(area) = info->uio_dev;
	area->vm_ops = &uio_vhostpci_vm_ops;
	compat_set_pfnmap(area);
	return 0;
}
