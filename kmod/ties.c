// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ties: an eventfd whose signal rings a doorbell, without a thread
 *
 * A vhost back-end calls the driver of the ring by an eventfd.  A tie waits on
 * that eventfd's wait queue, as KVM's irqfd does, and stores to the doorbell
 * register when it is woken: under the queue's lock, with interrupts off.  It
 * reads the eventfd as well, so that the count says what is not rung yet.
 *
 * Signals by an interrupt handler are left alone.  A vector's eventfd could be
 * tied to a doorbell that fires this very vector, and one processor would do
 * nothing else than serve that interrupt.  A vhost back-end signals from a
 * process or from a thread of the kernel.  So does a handler where the kernel
 * was booted with "threadirqs", or is PREEMPT_RT: but its thread disables
 * softirqs, which no back-end does, and which in_interrupt() counts as well.
 */

#include <linux/file.h>
#include <linux/io.h>
#include <linux/poll.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "uio_vhostpci.h"

#define UIO_VHOSTPCI_DOORBELL 12	/* bytes into BAR 0 */
#define UIO_VHOSTPCI_MAX_TIES 1024	/* of a device */

/**
 * struct uio_vhostpci_waiter - A tie
 * @list:	In the device's ties
 * @wait:	In the eventfd's wait queue
 * @poll:	Puts @wait there
 * @eventfd:	The eventfd
 * @doorbell:	Address of the register
 * @value:	What is stored there
 * @closed:	Whether no program has the eventfd open any more
 */
struct uio_vhostpci_waiter {
	struct list_head list;
	wait_queue_entry_t wait;
	poll_table poll;
	struct eventfd_ctx *eventfd;
	void __iomem *doorbell;
	u32 value;
	bool closed;
};

static int uio_vhostpci_wake(wait_queue_entry_t *wait, unsigned int mode,
			     int sync, void *key)
{
	struct uio_vhostpci_waiter *tie =
		container_of(wait, struct uio_vhostpci_waiter, wait);
	__poll_t events = key_to_poll(key);
	u64 count;

	if (events & EPOLLIN && !in_interrupt()) {
		eventfd_ctx_do_read(tie->eventfd, &count);
		iowrite32(tie->value, tie->doorbell);
	}
	if (events & EPOLLHUP)
		WRITE_ONCE(tie->closed, true);
	return 0;
}

static void uio_vhostpci_wait(struct file *file, wait_queue_head_t *queue,
			      poll_table *poll)
{
	struct uio_vhostpci_waiter *tie =
		container_of(poll, struct uio_vhostpci_waiter, poll);

	add_wait_queue(queue, &tie->wait);
}

static void uio_vhostpci_cut(struct uio_vhostpci *dev,
			     struct uio_vhostpci_waiter *tie)
{
	u64 count;

	/* It takes the queue's lock: no store is under way after this. */
	eventfd_ctx_remove_wait_queue(tie->eventfd, &tie->wait, &count);
	eventfd_ctx_put(tie->eventfd);
	list_del(&tie->list);
	dev->tie_count--;
	kfree(tie);
}

static struct uio_vhostpci_waiter *
uio_vhostpci_tied(struct uio_vhostpci *dev, struct eventfd_ctx *eventfd)
{
	struct uio_vhostpci_waiter *tie;

	list_for_each_entry(tie, &dev->ties, list)
		if (tie->eventfd == eventfd)
			return tie;
	return NULL;
}

static void uio_vhostpci_cut_closed(struct uio_vhostpci *dev)
{
	struct uio_vhostpci_waiter *tie, *next;

	list_for_each_entry_safe(tie, next, &dev->ties, list)
		if (READ_ONCE(tie->closed))
			uio_vhostpci_cut(dev, tie);
}

static int uio_vhostpci_add(struct uio_vhostpci *dev, struct file *file,
			    struct eventfd_ctx *eventfd, u32 value)
{
	struct uio_vhostpci_waiter *tie;

	uio_vhostpci_cut_closed(dev);
	/* One store for each signal: all are made with interrupts off. */
	if (uio_vhostpci_tied(dev, eventfd))
		return -EBUSY;
	if (dev->tie_count == UIO_VHOSTPCI_MAX_TIES)
		return -ENOSPC;
	tie = kzalloc(sizeof(*tie), GFP_KERNEL_ACCOUNT);
	if (!tie)
		return -ENOMEM;
	tie->eventfd = eventfd;
	tie->doorbell = dev->registers + UIO_VHOSTPCI_DOORBELL;
	tie->value = value;
	list_add(&tie->list, &dev->ties);
	dev->tie_count++;
	init_waitqueue_func_entry(&tie->wait, uio_vhostpci_wake);
	init_poll_funcptr(&tie->poll, uio_vhostpci_wait);
	/* A signal from before the wait began wakes no one. */
	if (vfs_poll(file, &tie->poll) & EPOLLIN)
		iowrite32(tie->value, tie->doorbell);
	return 0;
}

/**
 * uio_vhostpci_tie() - Let an eventfd ring a doorbell
 * @dev:	Device; the caller holds uio_vhostpci_lock
 * @request:	Which eventfd, and which doorbell; QEMU ignores a store for a
 *		peer or a vector that is not there
 *
 * Return: 0; -EBADF or -EINVAL if it is no eventfd, -EBUSY if it is tied to a
 * doorbell of the device already, -ENOSPC if too many are, -ENOMEM
 */
int uio_vhostpci_tie(struct uio_vhostpci *dev,
		     const struct uio_vhostpci_tie *request)
{
	struct file *file = fget(request->eventfd);
	struct eventfd_ctx *eventfd;
	int err;

	if (!file)
		return -EBADF;
	eventfd = eventfd_ctx_fileget(file);
	if (IS_ERR(eventfd)) {
		err = PTR_ERR(eventfd);
	} else {
		err = uio_vhostpci_add(dev, file, eventfd,
				       request->peer << 16 | request->vector);
		if (err)
			eventfd_ctx_put(eventfd);
	}
	fput(file);
	return err;
}

/**
 * uio_vhostpci_untie() - Let an eventfd ring no doorbell of a device any more
 * @dev:	Device; the caller holds uio_vhostpci_lock
 * @request:	Which eventfd
 *
 * Return: 0; -EBADF or -EINVAL if it is no eventfd, -ENOENT if it is not tied
 */
int uio_vhostpci_untie(struct uio_vhostpci *dev,
		       const struct uio_vhostpci_tie *request)
{
	struct eventfd_ctx *eventfd = eventfd_ctx_fdget(request->eventfd);
	struct uio_vhostpci_waiter *tie;

	if (IS_ERR(eventfd))
		return PTR_ERR(eventfd);
	tie = uio_vhostpci_tied(dev, eventfd);
	if (tie)
		uio_vhostpci_cut(dev, tie);
	eventfd_ctx_put(eventfd);
	return tie ? 0 : -ENOENT;
}

/**
 * uio_vhostpci_untie_all() - Let no eventfd ring a doorbell any more
 * @dev:	Device; the caller holds uio_vhostpci_lock
 */
void uio_vhostpci_untie_all(struct uio_vhostpci *dev)
{
	struct uio_vhostpci_waiter *tie, *next;

	list_for_each_entry_safe(tie, next, &dev->ties, list)
		uio_vhostpci_cut(dev, tie);
}
