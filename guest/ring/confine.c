// SPDX-License-Identifier: Apache-2.0
/*
 * The system calls of a worker, and no others.
 *
 * A worker reads what a master writes, in C.  If a master gets it to run other
 * code, that code finds no way to open a file, to make a socket, to start a
 * process or to execute memory, by this filter (seccomp(2)).  The thread shares its
 * memory with the agent's other threads, which the filter does not hold: they
 * have no privileges either.
 *
 * A call that is not in the list fails with EPERM.  It does not end the process,
 * as one that only a later C library makes would be the end of all devices.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "ring.h"

#define CONFINE_LOAD(member)               \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, \
		 offsetof(struct seccomp_data, member))
#define CONFINE_RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define CONFINE_ALLOW(name)                                    \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), \
		CONFINE_RETURN(SECCOMP_RET_ALLOW)

/* x32 has other numbers, above this bit, which are none of the list. */
static const struct sock_filter confine_code[] = {
	CONFINE_LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
	CONFINE_RETURN(SECCOMP_RET_KILL_PROCESS),
	CONFINE_LOAD(nr),
	/* Packets, and calls of the master: an eventfd, or a socket. */
	CONFINE_ALLOW(readv),
	CONFINE_ALLOW(writev),
	CONFINE_ALLOW(write),
	CONFINE_ALLOW(io_uring_enter),
	CONFINE_ALLOW(sendto),
	/* Kicks, and sleep. */
	CONFINE_ALLOW(ppoll),
	CONFINE_ALLOW(poll),
	CONFINE_ALLOW(epoll_wait), /* calls.c */
	CONFINE_ALLOW(preadv2),
	CONFINE_ALLOW(read),
	CONFINE_ALLOW(restart_syscall),
	/* The C library: locks, the clock where the vDSO has none, the end. */
	CONFINE_ALLOW(futex),
	CONFINE_ALLOW(clock_gettime),
	CONFINE_ALLOW(rt_sigprocmask),
	CONFINE_ALLOW(madvise),
	CONFINE_ALLOW(munmap),
	CONFINE_ALLOW(exit),
	/* guard.c, when memory of the master's is lost. */
	CONFINE_ALLOW(rt_sigreturn),
	CONFINE_ALLOW(rt_sigaction),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3),
	CONFINE_LOAD(args[2]), /* its low half: prot */
	BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0),
	CONFINE_RETURN(SECCOMP_RET_ALLOW),
	CONFINE_RETURN(SECCOMP_RET_ERRNO | EPERM),
};

/**
 * confine_thread() - Leave this thread the system calls of a worker
 *
 * Return: 0; -errno: the kernel has no seccomp filters (EINVAL, ENOSYS), or an
 *	   outer filter forbids them (EPERM)
 */
int confine_thread(void)
{
	struct sock_fprog program = {
		.len = sizeof(confine_code) / sizeof(*confine_code),
		.filter = (struct sock_filter *)(uintptr_t)confine_code,
	};

	/* Else the kernel would ask for CAP_SYS_ADMIN.  For this thread only. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	/*
	 * Before Linux 5.16 a filter would switch the processor's speculation
	 * past stores off for the thread, which costs more than all else here.
	 */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		    SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program))
		return -errno;
	return 0;
}

static void *confine_try(void *ret)
{
	*(int *)ret = confine_thread();
	return NULL;
}

/**
 * confine_probe() - Find out whether workers can be confined on this machine
 *
 * Return: as confine_thread(), which is tried in a separate thread
 */
int confine_probe(void)
{
	pthread_t thread;
	int r = 0;
	int error = pthread_create(&thread, NULL, confine_try, &r);

	if (error)
		return -error;
	pthread_join(thread, NULL);
	return r;
}
