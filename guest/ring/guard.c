// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that somebody else may take away while it is mapped here.
 *
 * Theory of operation
 * -------------------
 * A window is a file of another process, or a BAR.  The file may shrink, the
 * device may be unplugged, and then each access to the mapping is a SIGBUS: in
 * a worker's thread, or in Python as it reads the metadata.  No check can come
 * before each of these accesses, so they must be allowed to fail.
 *
 * A guard is a range that such memory is mapped at.  The handler of a SIGBUS
 * within it maps zeros over the whole range, notes that the memory is lost, and
 * signals the guard's eventfd.  The access then goes on, as does its thread:
 * what it reads are zeros, what it writes is seen by nobody.  A ring whose used
 * index or whose session is 0 all of a sudden is fenced (split.c); one that
 * stood at 0 by chance is merely idle.  A loop that finds the eventfd readable
 * lets go of the mapping.  The kernel gets no signal: readv() and writev() on
 * lost memory are an EFAULT, and RING_FAULT_MEMORY.
 *
 * Any other SIGBUS is none of ours, and goes to whoever had it before: nobody,
 * faulthandler, a sanitizer.
 *
 * The signal's action is the process's, and so is the table below: these are
 * the ring driver's only globals.  guard_open() and guard_close() exclude each
 * other by a lock, which the handler must not take: it may interrupt its
 * holder.  Instead a slot counts once its address is not 0, and is emptied by
 * guard_close(), which then waits until no handler is under way.  So no handler
 * maps anything over a range after that.  Two threads may well have faults in
 * one range at once: each maps zeros, and that does nothing but discard what
 * the other has written in vain.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "ring.h"
#include "worker.h"

/* On 32 bits the call has another number, or takes other arguments. */
static_assert(sizeof(void *) == 8, "SYS_mmap");

enum {
	GUARD_SLOTS = 4096
};

struct guard_slot {
	uintptr_t address; /* 0: free */
	size_t size;
	int fd; /* eventfd of the owner's */
	uint32_t lost;
};

static struct guard_slot guard_slots[GUARD_SLOTS];
static uint32_t guard_handlers; /* under way */
static size_t guard_page;
static struct sigaction guard_before;
static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;

static struct guard_slot *guard_find(uintptr_t fault)
{
	for (int i = 0; i < GUARD_SLOTS; i++) {
		struct guard_slot *slot = &guard_slots[i];
		/* Pairs with both stores in guard_open() and guard_close(). */
		uintptr_t address =
			__atomic_load_n(&slot->address, __ATOMIC_SEQ_CST);

		if (address && fault - address < slot->size)
			return slot;
	}
	return NULL;
}

/*
 * The system call itself: libc's mmap() is not meant for signal handlers, and a
 * sanitizer's is more than a call.
 */
static bool guard_zero(uintptr_t address, size_t size)
{
	return syscall(SYS_mmap, address, size, PROT_READ | PROT_WRITE,
		       MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0) == (long)address;
}

/*
 * A range may be larger than all the memory we may have (RLIMIT_DATA, or
 * vm.overcommit_memory=2, which knows no MAP_NORESERVE).  Then it is replaced
 * page by page, as far as anybody still looks at it.
 */
static bool guard_replace(struct guard_slot *slot, uintptr_t fault)
{
	/* First of all: whoever reads zeros must find this set. */
	__atomic_store_n(&slot->lost, 1, __ATOMIC_SEQ_CST);
	if (!guard_zero(slot->address, slot->size) &&
	    !guard_zero(fault & ~(uintptr_t)(guard_page - 1), guard_page))
		return false;
	worker_signal(slot->fd);
	return true;
}

/*
 * After the handler the access is made again, and meets the action of before.
 * A signal that somebody sent (si_code up to 0) must be sent again.  If that
 * action comes back to us (faulthandler restores what it found), it has done
 * what it could.
 */
static void guard_pass_on(const siginfo_t *info)
{
	sigaction(SIGBUS, &guard_before, NULL);
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
	/* Before any look at a slot: pairs with the load in guard_close(). */
	__atomic_add_fetch(&guard_handlers, 1, __ATOMIC_SEQ_CST);
	if (info->si_code > 0)
		slot = guard_find(fault);
	if (!slot || !guard_replace(slot, fault))
		guard_pass_on(info);
	__atomic_sub_fetch(&guard_handlers, 1, __ATOMIC_SEQ_CST);
	errno = error;
}

/* Again with each guard: somebody may have set an action of his own. */
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

static int guard_take(uintptr_t address, size_t size, int fd)
{
	for (int i = 0; i < GUARD_SLOTS; i++) {
		struct guard_slot *slot = &guard_slots[i];

		if (slot->address)
			continue;
		slot->size = size;
		slot->fd = fd;
		slot->lost = 0;
		__atomic_store_n(&slot->address, address, __ATOMIC_SEQ_CST);
		return i;
	}
	return -ENOSPC;
}

/**
 * guard_open() - Survive the loss of a mapping
 * @address:	Where it starts
 * @size:	Its length; the last page counts in full
 * @fd:		Eventfd to be written to when it is lost; stays the caller's
 *
 * Return: number of the guard; -EINVAL: @address is not a page's or the range
 *	   is empty or wraps; -ENOSPC: there are 4096 already
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
 * guard_close() - Watch over a mapping no longer
 * @number:	The guard
 *
 * After the last access to it, and before anything else is mapped there.
 *
 * Return: 0 or -EINVAL
 */
int guard_close(uint32_t number)
{
	if (number >= GUARD_SLOTS)
		return -EINVAL;
	pthread_mutex_lock(&guard_lock);
	__atomic_store_n(&guard_slots[number].address, 0, __ATOMIC_SEQ_CST);
	/* A handler that missed the store above has raised this before. */
	while (__atomic_load_n(&guard_handlers, __ATOMIC_SEQ_CST))
		sched_yield();
	pthread_mutex_unlock(&guard_lock);
	return 0;
}

/**
 * guard_lost() - Is what was mapped lost?
 * @number:	The guard
 *
 * Return: 1 if so, and zeros are there now; 0; -EINVAL
 */
int guard_lost(uint32_t number)
{
	if (number >= GUARD_SLOTS)
		return -EINVAL;
	return __atomic_load_n(&guard_slots[number].lost, __ATOMIC_SEQ_CST);
}
