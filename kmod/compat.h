/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels that uio_vhostpci is built for.  Kbuild
 * asks the headers, not for a version: distributions carry changes back.
 */
#ifndef UIO_VHOSTPCI_COMPAT_H
#define UIO_VHOSTPCI_COMPAT_H

#include <linux/eventfd.h>
#include <linux/huge_mm.h>
#include <linux/mm.h>

#ifdef HAVE_EVENTFD_SIGNAL_COUNT	/* until Linux 6.7 */
#define uio_vhostpci_signal(trigger) eventfd_signal(trigger, 1)
#else
#define uio_vhostpci_signal(trigger) eventfd_signal(trigger)
#endif

/* A mapping that is being made: the description of one, or already itself. */
#ifdef HAVE_UIO_MMAP_PREPARE	/* from Linux 7 on */
#define compat_area vm_area_desc
#define compat_mmap mmap_prepare
#define compat_pgoff(area) ((area)->pgoff)
#define compat_prot(area) ((area)->page_prot)
#define compat_private(area) ((area)->private_data)
#define compat_is_shared(area) vma_desc_test(area, VMA_SHARED_BIT)
#define compat_set_pfnmap(area) \
	vma_desc_set_flags(area, VMA_IO_BIT, VMA_PFNMAP_BIT, \
			   VMA_DONTEXPAND_BIT, VMA_DONTDUMP_BIT)
#else
#define compat_area vm_area_struct
#define compat_mmap mmap
#define compat_pgoff(area) ((area)->vm_pgoff)
#define compat_prot(area) ((area)->vm_page_prot)
#define compat_private(area) ((area)->vm_private_data)
#define compat_is_shared(area) ((area)->vm_flags & VM_SHARED)
#define compat_set_pfnmap(area) \
	vm_flags_set(area, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP)
#endif

#ifdef HAVE_PFN_T	/* until Linux 6.16 */
#include <linux/pfn_t.h>
#define compat_pfn(pfn) __pfn_to_pfn_t(pfn, PFN_DEV)
#else
#define compat_pfn(pfn) (pfn)
#endif

#ifndef HAVE_VM_FLAGS_SET	/* until Linux 6.2 */
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}
#endif

#endif
