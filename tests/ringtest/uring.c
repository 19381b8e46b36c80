// SPDX-License-Identifier: Apache-2.0
/*
 * guest/ring/uring.c with a kernel that does what the arguments say.
 *
 * uring LIMIT TAKES HOW RESULT...
 *	LIMIT: of the TAP's send buffer, or -: it is no TAP
 *	TAKES: how many requests a call takes, or -errno of the call
 *	HOW: now: results are there when the call returns; late: after the next one;
 *	     old: now, and the kernel knows RWF_NOWAIT for no TAP
 *	RESULT: what each request gives, or skip: a packet that is not to be written
 *
 * The packets are written twice, so that what the first time leaves behind is
 * seen.  Prints their results of the second time, and the ring's error.  Exit
 * status 0, or 1 and a line on stderr.
 */
#include <errno.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "barrier.h"
#include "uring.h"

enum {
	ENTRIES = URING_PACKETS,
	MAX = 64
};

/* The mapping of both rings. */
struct kernel {
	uint32_t sq_head, sq_tail, sq_mask;
	uint32_t cq_head, cq_tail, cq_mask;
	uint32_t array[ENTRIES];
	struct io_uring_cqe cqes[2 * ENTRIES];
};

static struct kernel *kernel;
static struct io_uring_sqe *sqes;
static int limit = -1, takes;
static bool late, links, old, restricted, enabled;
static int calls; /* that submit */
static int result[MAX];
static uint32_t due; /* completions that the next call shows */

long __wrap_syscall(long number, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

static void die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

static void *map(int fd, size_t size, off_t offset)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		       offset);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static long set_up(struct io_uring_params *p)
{
	int fd = memfd_create("uring", 0);

	if (p->flags != IORING_SETUP_R_DISABLED)
		die("a ring that may do anything from its start");
	if (fd < 0 || ftruncate(fd, IORING_OFF_SQES + (1 << 20)))
		die("memfd");
	kernel = map(fd, sizeof(*kernel), IORING_OFF_SQ_RING);
	sqes = map(fd, ENTRIES * sizeof(*sqes), IORING_OFF_SQES);
	kernel->sq_mask = ENTRIES - 1;
	kernel->cq_mask = 2 * ENTRIES - 1;
	p->sq_entries = ENTRIES;
	p->cq_entries = 2 * ENTRIES;
	p->features = IORING_FEAT_EXT_ARG;
	p->sq_off.head = offsetof(struct kernel, sq_head);
	p->sq_off.tail = offsetof(struct kernel, sq_tail);
	p->sq_off.ring_mask = offsetof(struct kernel, sq_mask);
	p->sq_off.array = offsetof(struct kernel, array);
	p->cq_off.head = offsetof(struct kernel, cq_head);
	p->cq_off.tail = offsetof(struct kernel, cq_tail);
	p->cq_off.ring_mask = offsetof(struct kernel, cq_mask);
	p->cq_off.cqes = offsetof(struct kernel, cqes);
	return fd;
}

/* Do a request.  Returns false if it has failed. */
static bool work(const struct io_uring_sqe *sqe, bool cancel)
{
	uint32_t at = (kernel->cq_tail + due++) & kernel->cq_mask;
	int r = cancel ? -ECANCELED : result[sqe->user_data];

	if (sqe->rw_flags != RWF_NOWAIT && (links || calls == 1))
		die("a request that the kernel may do later");
	if (old && sqe->rw_flags)
		r = -EOPNOTSUPP;
	if (sqe->opcode == IORING_OP_WRITE ? sqe->len != 64 : sqe->len != 2)
		die("a request for something else than the packet");
	kernel->cqes[at] = (struct io_uring_cqe){
		.user_data = sqe->user_data,
		.res = r,
	};
	return r > 0;
}

static void show(void)
{
	kernel->cq_tail += due;
	due = 0;
}

static void restrict_to(const struct io_uring_restriction *only, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (only[i].opcode == IORING_RESTRICTION_SQE_FLAGS_ALLOWED
			    ? only[i].sqe_flags != IOSQE_IO_LINK
			    : only[i].opcode != IORING_RESTRICTION_SQE_OP ||
				      (only[i].sqe_op != IORING_OP_WRITE &&
				       only[i].sqe_op != IORING_OP_WRITEV))
			die("a ring that may do more than write");
	}
	restricted = true;
}

static long set_rules(uint32_t opcode, const void *argument, uint32_t n)
{
	if (opcode == IORING_REGISTER_RESTRICTIONS)
		restrict_to(argument, n);
	else if (opcode == IORING_REGISTER_ENABLE_RINGS && restricted)
		enabled = true;
	else
		die("a ring that is switched on before it is restricted");
	return 0;
}

static long enter(uint32_t submit, uint32_t wait)
{
	uint32_t n = kernel->sq_tail - kernel->sq_head, i;
	bool failed = false;

	if (!enabled)
		die("a request to a ring that is not switched on");
	if (wait)
		show();
	if (!submit) {
		if (kernel->cq_head == kernel->cq_tail)
			die("waits for a completion that never comes");
		return 0;
	}
	calls++;
	if (submit != n)
		die("submits another number than there is");
	if (links != (wait == submit))
		die("waits for what is there, or does not begin what is "
		    "linked");
	if (takes < 0) {
		errno = -takes;
		return -1;
	}
	for (i = 0; i < submit && i < (uint32_t)takes; i++) {
		uint32_t at = kernel->array[kernel->sq_head & kernel->sq_mask];
		const struct io_uring_sqe *sqe = &sqes[at];
		bool linked = sqe->flags & IOSQE_IO_LINK;

		if (linked != (links && i < submit - 1))
			die("a link where there is none, or none");
		failed |= !work(sqe, links && failed);
		kernel->sq_head++;
	}
	if (!late)
		show();
	return i;
}

long __wrap_syscall(long number, ...)
{
	va_list args;
	long r;

	va_start(args, number);
	(void)va_arg(args, long);
	if (number == SYS_io_uring_setup) {
		r = set_up(va_arg(args, struct io_uring_params *));
	} else if (number == SYS_io_uring_register) {
		uint32_t opcode = va_arg(args, uint32_t);
		const void *argument = va_arg(args, const void *);

		r = set_rules(opcode, argument, va_arg(args, uint32_t));
	} else {
		uint32_t submit = va_arg(args, uint32_t);

		r = enter(submit, va_arg(args, uint32_t));
	}
	va_end(args);
	return r;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list args;

	if (fd != 7 || request != TUNGETSNDBUF || limit < 0)
		return -1;
	va_start(args, request);
	*va_arg(args, int *) = limit;
	va_end(args);
	return 0;
}

int main(int argc, char **argv)
{
	static uint8_t data[64];
	struct iovec iov[2] = {{data, 64}, {data, 64}};
	struct tap_packet packet[MAX];
	struct uring u;
	int n = argc - 4;

	if (n < 1 || n > URING_PACKETS)
		die("usage: uring LIMIT TAKES HOW RESULT...");
	if (strcmp(argv[1], "-"))
		limit = atoi(argv[1]);
	links = limit != INT_MAX;
	takes = atoi(argv[2]);
	late = !strcmp(argv[3], "late");
	old = !strcmp(argv[3], "old");
	if (uring_open(&u))
		die("cannot open");
	uring_start(&u, 7);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < n; i++) {
			bool skip = !strcmp(argv[4 + i], "skip");

			packet[i] = (struct tap_packet){iov, 1 + i % 2, 0};
			packet[i].n = skip ? 0 : packet[i].n;
			result[i] = skip ? 0 : atoi(argv[4 + i]);
		}
		uring_write(&u, 7, packet, n);
	}
	for (int i = 0; i < n; i++)
		printf("%zd ", packet[i].result);
	printf("%d\n", u.error);
	uring_close(&u);
	return 0;
}
