// SPDX-License-Identifier: Apache-2.0
/*
 * Survive a SIGBUS when mapped memory is taken away.
 *
 * Theory of operation
 * -------------------
 * The daemon maps the end of an arena, and the agent its windows: a file that
 * other processes have, too, or a BAR.  The file may shrink, and the device may
 * be unplugged; then each access to the mapping raises SIGBUS, in a worker's
 * thread, or in Python when it reads the metadata.  A check before the access
 * does not help: the file may shrink between the two.  So these accesses must
 * be allowed to fail.
 *
 * A guard watches the range of addresses where such memory is mapped.  When an
 * access in that range raises SIGBUS, the handler maps zeros over the whole
 * range, notes that the memory is lost, and signals the guard's eventfd.  The
 * access is then made again, and the thread goes on: it reads zeros, and what
 * it writes reaches no other process.  In the agent, a ring whose used index or
 * session number turns into 0 is fenced (split.c), and a ring where both were 0
 * stays idle; its loop finds the eventfd readable and unmaps the memory.  The
 * daemon asks guard_lost(), and maps the file again.
 *
 * The kernel gets no signal: readv() and writev() on lost memory return EFAULT,
 * which becomes RING_FAULT_MEMORY.  A SIGBUS outside all guards goes to the
 * action that was set before ours: the default, faulthandler's, or a
 * sanitizer's.
 *
 * A signal's action belongs to the whole process, and so does the table of
 * guards: these are the only globals of our C.
 *
 * This file is built into two modules, the agent's vhostpci_guest._ring and the
 * daemon's vhostpci_shared._memory.  In a process that has both, which only
 * tests are, each has its own table, and passes on what is in the other's.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "guard_api.h"

/* On 32 bits the call has another number, or takes other arguments. */
static_assert(sizeof(void *) == 8, "SYS_mmap");

enum {
	GUARD_SLOTS = 4096
};

struct guard_slot {
	uintptr_t address; /* 0: free */
	size_t size;
	int fd; /* eventfd of the owner */
	uint32_t lost;
};

static struct guard_slot guard_slots[GUARD_SLOTS];
static uint32_t guard_handlers; /* handlers that are running now */
static size_t guard_page;
static struct sigaction guard_before;
/*
 * For guard_open() and guard_close() only.  The handler must not take it: it
 * may have interrupted the thread that holds it.
 */
static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;

static struct guard_slot *guard_find(uintptr_t fault)
{
	for (int i = 0; i < GUARD_SLOTS; i++) {
		struct guard_slot *slot = &guard_slots[i];
		/*
		 * Pairs with the store in guard_take(): a slot whose address is
		 * set has its size and fd; and with the store in guard_close(),
		 * which waits for us if we have missed it.
		 */
		uintptr_t address =
			__atomic_load_n(&slot->address, __ATOMIC_SEQ_CST);

		if (address && fault - address < slot->size)
			return slot;
	}
	return NULL;
}

/*
 * Map zeros over a range.  By the system call itself:  POSIX does not list
 * mmap() among the functions that a signal handler may call, and a sanitizer
 * replaces it by a function that does more.
 *
 * System calls: mmap(NO_EXEC), rt_sigaction, write.
 */
static bool guard_zero(uintptr_t address, size_t size)
{
	return syscall(SYS_mmap, address, size, PROT_READ | PROT_WRITE,
		       MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0) == (long)address;
}

/* Without a loop: an eventfd whose counter is full says what it is to say. */
static void guard_signal(int fd)
{
	const uint64_t one = 1;

	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return;
}

/*
 * Replace the whole range of a guard.  The range may be larger than the memory
 * that this process may have (vm.overcommit_memory=2, which ignores
 * MAP_NORESERVE, or RLIMIT_MEMLOCK after mlockall()); then replace only the
 * page of this access.  Two threads may run this for one range at once: the later
 * one discards what the other has written to its zeros, which is lost in any
 * case.
 */
static bool guard_replace(struct guard_slot *slot, uintptr_t fault)
{
	/* Before the zeros are there: a thread that reads them finds this. */
	__atomic_store_n(&slot->lost, 1, __ATOMIC_SEQ_CST);
	if (!guard_zero(slot->address, slot->size) &&
	    !guard_zero(fault & ~(uintptr_t)(guard_page - 1), guard_page))
		return false;
	guard_signal(slot->fd);
	return true;
}

/*
 * Give a signal that is not ours to the action that was set before.  After the
 * handler the access is made again, and raises SIGBUS again.  A signal sent by
 * kill() (si_code up to 0) would not come again: send it.
 */
static void guard_pass_on(const siginfo_t *info)
{
	sigaction(SIGBUS, &guard_before, NULL);
	/*
	 * faulthandler reports, and then restores the action that it found,
	 * which may be ours.  If so, the second time the signal ends the
	 * process.
	 */
	guard_before.sa_handler = SIG_DFL;
	guard_before.sa_flags = 0;
	if (info->si_code <= 0)
		raise(SIGBUS);
}

static void guard_handle(int signal, siginfo_t *info, void *context)
{
	struct guard_slot *slot = NULL;
	uintptr_t fault = (uintptr_t)info->si_addr;
	int error = errno;

	(void)signal;
	(void)context;
	/* Before we read a slot.  Pairs with the load in guard_close(). */
	__atomic_add_fetch(&guard_handlers, 1, __ATOMIC_SEQ_CST);
	if (info->si_code > 0)
		slot = guard_find(fault);
	if (!slot || !guard_replace(slot, fault))
		guard_pass_on(info);
	__atomic_sub_fetch(&guard_handlers, 1, __ATOMIC_SEQ_CST);
	errno = error;
}

/*
 * Set our action, unless it is set.  guard_open() calls this each time:  Python
 * code may have set another action since (faulthandler.enable()).
 */
static int guard_install(void)
{
	struct sigaction ours = {.sa_sigaction = guard_handle,
				 .sa_flags = SA_SIGINFO | SA_ONSTACK};
	struct sigaction now;

	sigemptyset(&ours.sa_mask);
	if (sigaction(SIGBUS, NULL, &now) < 0)
		return -errno;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == guard_handle)
		return 0;
	guard_before = now;
	return sigaction(SIGBUS, &ours, NULL) < 0 ? -errno : 0;
}

/* Under the lock. */
static int guard_take(uintptr_t address, size_t size, int fd)
{
	for (int i = 0; i < GUARD_SLOTS; i++) {
		struct guard_slot *slot = &guard_slots[i];

		if (slot->address)
			continue;
		slot->size = size;
		slot->fd = fd;
		slot->lost = 0;
		/* Last: from here on another thread's handler uses the slot. */
		__atomic_store_n(&slot->address, address, __ATOMIC_SEQ_CST);
		return i;
	}
	return -ENOSPC;
}

/**
 * guard_open() - Guard a mapping
 * @address:	Where it starts
 * @size:	Its length; the last page counts in full
 * @fd:		Eventfd to be written to when it is lost, which the caller closes;
 *		-1: none
 *
 * Return: number of the guard; -EINVAL: @address is not the start of a page, or
 *	   the range is empty or wraps; -ENOSPC: there are 4096 guards already
 */
int guard_open(uint64_t address, uint64_t size, int32_t fd)
{
	int r;

	pthread_mutex_lock(&guard_lock);
	guard_page = sysconf(_SC_PAGESIZE);
	size = (size + guard_page - 1) & ~(uint64_t)(guard_page - 1);
	if (!address || address & (guard_page - 1) || !size ||
	    size - 1 > UINTPTR_MAX - address)
		r = -EINVAL;
	else
		r = guard_install();
	if (!r)
		r = guard_take(address, size, fd);
	pthread_mutex_unlock(&guard_lock);
	return r;
}

/**
 * guard_close() - Guard a mapping no longer
 * @number:	The guard
 *
 * Call it after the last access to the mapping, and before the range is mapped
 * again: from its return on no handler changes that range.
 *
 * Return: 0 or -EINVAL
 */
int guard_close(uint32_t number)
{
	if (number >= GUARD_SLOTS)
		return -EINVAL;
	pthread_mutex_lock(&guard_lock);
	__atomic_store_n(&guard_slots[number].address, 0, __ATOMIC_SEQ_CST);
	/*
	 * A handler that did not see the store above had raised this before it
	 * read the slot, and may be about to map zeros: wait for it.
	 */
	while (__atomic_load_n(&guard_handlers, __ATOMIC_SEQ_CST))
		sched_yield();
	pthread_mutex_unlock(&guard_lock);
	return 0;
}

/**
 * guard_lost() - Check whether the memory of a guard is lost
 * @number:	The guard
 *
 * Return: 1: lost, the mapping holds zeros now; 0: not lost; -EINVAL
 */
int guard_lost(uint32_t number)
{
	if (number >= GUARD_SLOTS)
		return -EINVAL;
	return __atomic_load_n(&guard_slots[number].lost, __ATOMIC_SEQ_CST);
}
