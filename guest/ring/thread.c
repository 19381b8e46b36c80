// SPDX-License-Identifier: Apache-2.0
/*
 * How the threads of this folder start.
 */
#include <signal.h>
#include "thread.h"

/**
 * thread_start() - Start a thread that no signal of another thread's interrupts
 * @thread:	The thread
 * @run:	What it runs
 * @arg:	For @run
 * @name:	Its name, of 15 bytes at most
 *
 * Signals go to the owner's threads, except those that accesses of this thread
 * cause: if such a signal is blocked when it occurs, the kernel ends the process
 * without calling the handler.
 *
 * Return: 0 or -errno
 */
int thread_start(pthread_t *thread, void *(*run)(void *), void *arg,
		 const char *name)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	sigdelset(&all, SIGBUS); /* guard.c */
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	/* Here, as the thread inherits the mask: it must never run without. */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return -r;
	pthread_setname_np(*thread, name);
	return 0;
}
