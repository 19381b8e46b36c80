// SPDX-License-Identifier: Apache-2.0
/*
 * Several packets to the TAP with one system call, by io_uring.
 *
 * Theory of operation
 * -------------------
 * uring_write() puts a request for each packet into the submission ring, calls
 * the kernel once, and returns when the kernel has finished with all of them. So
 * no request is in flight between two calls, and a worker that stops need not
 * wait for any.
 *
 * A TAP takes a packet, or refuses it, within the call.  RWF_NOWAIT says that the
 * kernel must not do it later: without it a request that meets EAGAIN would wait
 * for room in the kernel, while those behind it are tried.  Linux 6.1 knows that
 * flag for no TAP; there only a TAP that never says EAGAIN is written by io_uring.
 *
 * The order of the packets must stay as it is.  The send buffer of a TAP has no
 * limit (INT_MAX) unless TUNSETSNDBUF has set one, so it never says EAGAIN, and
 * the requests are independent of each other.  Where there is a
 * limit, or the file is no TAP, they are linked: the first failure cancels the
 * requests behind it.  That takes a third more time, as each request is then
 * started after the one before it, by a task work.
 *
 * The TAP is not registered with the ring, though that would save a twentieth: a
 * ring ends some 25 ms after its process is killed, and a registered TAP with it.
 * The next agent would find the name in use.
 */
#include <errno.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "barrier.h"
#include "ring.h"
#include "uring.h"

static int uring_enter(const struct uring *u, uint32_t submit, uint32_t wait)
{
	uint32_t flags = wait ? IORING_ENTER_GETEVENTS : 0;
	long r = syscall(SYS_io_uring_enter, u->fd, submit, wait, flags, NULL,
			 0);

	return r < 0 ? -errno : (int)r;
}

static uint32_t *uring_word(const struct uring *u, uint32_t offset)
{
	return (uint32_t *)(void *)((uint8_t *)u->map + offset);
}

/* Find the parts of both rings in their mapping. */
static void uring_find(struct uring *u, const struct io_uring_params *p)
{
	uint32_t *array = uring_word(u, p->sq_off.array);

	u->sq_head = uring_word(u, p->sq_off.head);
	u->sq_tail = uring_word(u, p->sq_off.tail);
	u->sq_mask = *uring_word(u, p->sq_off.ring_mask);
	u->cq_head = uring_word(u, p->cq_off.head);
	u->cq_tail = uring_word(u, p->cq_off.tail);
	u->cq_mask = *uring_word(u, p->cq_off.ring_mask);
	u->cqes = (const void *)uring_word(u, p->cq_off.cqes);
	/* Requests are used in their order, always. */
	for (uint32_t i = 0; i < p->sq_entries; i++)
		array[i] = i;
}

static int uring_map(struct uring *u, const struct io_uring_params *p)
{
	size_t sq = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
	size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(*u->cqes);

	u->map_size = sq > cq ? sq : cq;
	u->sqes_size = p->sq_entries * sizeof(*u->sqes);
	u->map = mmap(NULL, u->map_size, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_POPULATE, u->fd, IORING_OFF_SQ_RING);
	if (u->map == MAP_FAILED)
		return -errno;
	u->sqes = mmap(NULL, u->sqes_size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_POPULATE, u->fd, IORING_OFF_SQES);
	if (u->sqes == MAP_FAILED) {
		int error = errno;

		munmap(u->map, u->map_size);
		return -error;
	}
	uring_find(u, p);
	return 0;
}

/*
 * Let the ring write, and do nothing else: a filter of system calls (confine.c)
 * does not see what the kernel does for a ring.
 */
static int uring_restrict(const struct uring *u)
{
	struct io_uring_restriction only[] = {
		{.opcode = IORING_RESTRICTION_SQE_OP,
		 .sqe_op = IORING_OP_WRITE},
		{.opcode = IORING_RESTRICTION_SQE_OP,
		 .sqe_op = IORING_OP_WRITEV},
		{.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED,
		 .sqe_flags = IOSQE_IO_LINK},
	};

	if (syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_RESTRICTIONS,
		    only, sizeof(only) / sizeof(*only)) < 0)
		return -errno;
	if (syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_ENABLE_RINGS,
		    NULL, 0) < 0)
		return -errno;
	return 0;
}

/**
 * uring_open() - Make a ring
 * @u:		Ring; error is set, too
 *
 * Return: 0; -errno: the kernel has no io_uring (ENOSYS), forbids it (EPERM), ...;
 *	   -EOPNOTSUPP: it is older than 5.11, and lacks something that we need
 */
int uring_open(struct uring *u)
{
	struct io_uring_params p = {.flags = IORING_SETUP_R_DISABLED};
	int r;

	memset(u, 0, sizeof(*u));
	u->fd = syscall(SYS_io_uring_setup, URING_PACKETS, &p);
	r = u->fd < 0 ? -errno : 0;
	if (r == -EINVAL) /* before 5.10: it knows no restrictions */
		r = -EOPNOTSUPP;
	if (!r) {
		/* That one came last of all that we need. */
		r = p.features & IORING_FEAT_EXT_ARG ? uring_restrict(u)
						     : -EOPNOTSUPP;
		if (!r)
			r = uring_map(u, &p);
		if (r)
			close(u->fd);
	}
	u->open = !r;
	u->error = -r;
	return r;
}

/**
 * uring_close() - Free a ring
 * @u:		Ring, open or not
 */
void uring_close(struct uring *u)
{
	if (!u->open)
		return;
	u->open = false;
	munmap(u->sqes, u->sqes_size);
	munmap(u->map, u->map_size);
	close(u->fd);
}

/**
 * uring_probe() - Find out whether this machine has what uring_open() needs
 *
 * Return: as uring_open()
 */
int uring_probe(void)
{
	struct uring u;
	int r = uring_open(&u);

	uring_close(&u);
	return r;
}

/**
 * uring_start() - Look at the file that the packets are for
 * @u:		Ring, open or not
 * @fd:		TAP queue
 */
void uring_start(struct uring *u, int fd)
{
	int limit = 0;

	u->links = ioctl(fd, TUNGETSNDBUF, &limit) < 0 || limit != INT_MAX;
	u->nowait = true;
}

/* Have packets go the other way from now on; worker.c reads why. */
static void uring_give_up(struct uring *u, int error)
{
	write_once(&u->error, error);
}

static void uring_put(const struct uring *u, struct io_uring_sqe *sqe, int fd,
		      const struct tap_packet *packet)
{
	memset(sqe, 0, sizeof(*sqe));
	sqe->flags = u->links ? IOSQE_IO_LINK : 0;
	sqe->fd = fd;
	sqe->rw_flags = u->nowait ? RWF_NOWAIT : 0;
	/* Most packets are one vector, which the kernel need not copy then. */
	if (packet->n == 1) {
		sqe->opcode = IORING_OP_WRITE;
		sqe->addr = (uintptr_t)packet->iov->iov_base;
		/* Fits: RING_MAX_PACKET and the net header at most. */
		sqe->len = packet->iov->iov_len;
	} else {
		sqe->opcode = IORING_OP_WRITEV;
		sqe->addr = (uintptr_t)packet->iov;
		sqe->len = packet->n;
	}
}

/* Put a request for each packet into the ring.  Returns their number. */
static uint32_t uring_fill(struct uring *u, int fd,
			   const struct tap_packet *packet, uint32_t n)
{
	uint32_t tail = *u->sq_tail, count = 0;
	struct io_uring_sqe *sqe = NULL;

	for (uint32_t i = 0; i < n; i++) {
		if (!packet[i].n)
			continue;
		sqe = &u->sqes[(tail + count++) & u->sq_mask];
		uring_put(u, sqe, fd, &packet[i]);
		sqe->user_data = i;
	}
	if (sqe)
		sqe->flags = 0; /* the last one has nothing behind it */
	/* Release: pairs with the kernel's acquire, by io_uring's rules. */
	store_release(u->sq_tail, tail + count);
	return count;
}

/*
 * Have the kernel take the requests.  Returns how many it has taken; those that
 * it has not are taken back: a second call would not know what became of the
 * first one's.
 */
static uint32_t uring_submit(struct uring *u, uint32_t count)
{
	/* Those that are linked are begun while we wait. */
	int r = uring_enter(u, count, u->links ? count : 0);

	/* Without memory it may work the next time. */
	if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY && r != -ENOMEM)
		uring_give_up(u, -r);
	if (r < 0)
		r = 0;
	if ((uint32_t)r < count)
		write_once(u->sq_tail, load_acquire(u->sq_head));
	return r;
}

/* The kernel does not know RWF_NOWAIT for this file. */
static void uring_refused(struct uring *u)
{
	if (u->nowait && !u->links)
		u->nowait = false;
	else
		uring_give_up(u, EOPNOTSUPP);
}

/* Wait until the kernel has finished with so many requests. */
static void uring_collect(struct uring *u, struct tap_packet *packet,
			  uint32_t count)
{
	uint32_t head = *u->cq_head;
	bool refused = false;

	for (; count; count--, head++) {
		const struct io_uring_cqe *cqe = &u->cqes[head & u->cq_mask];

		/*
		 * It is there when the submission returns; if a signal has
		 * interrupted that, it comes.  The kernel may use the master's
		 * memory until then, so there is no other way out of here.
		 */
		while (load_acquire(u->cq_tail) == head)
			uring_enter(u, 0, 1);
		refused |= cqe->res == -EOPNOTSUPP;
		/* After these it can still be written. */
		if (cqe->res != -EOPNOTSUPP && cqe->res != -EINTR)
			packet[cqe->user_data].result = cqe->res;
	}
	store_release(u->cq_head, head);
	if (refused)
		uring_refused(u);
}

/*
 * Have the results say what is still to be written.  A packet that the TAP had no
 * room for is lost if one behind it was written.  Behind the last one that was,
 * only the first failure counts, as if it had ended the batch; links make it so.
 */
static void uring_keep_order(struct tap_packet *packet, uint32_t n)
{
	uint32_t end = n;

	while (end && packet[end - 1].result <= 0)
		end--;
	for (uint32_t i = 0; i < end; i++)
		if (!packet[i].result || packet[i].result == -EAGAIN)
			packet[i].result = -ENOBUFS;
	for (uint32_t i = end + 1; i < n; i++)
		packet[i].result = 0;
}

/**
 * uring_write() - Write packets, in their order
 * @u:		Ring that is ready
 * @fd:		TAP queue, as uring_start() had it
 * @packet:	Packets; their results are 0, and are set.  One that stays 0 was
 *		not written, nor was any behind it
 * @n:		Number of @packet, %URING_PACKETS at most
 */
void uring_write(struct uring *u, int fd, struct tap_packet *packet, uint32_t n)
{
	uint32_t count = uring_fill(u, fd, packet, n);

	if (!count)
		return;
	uring_collect(u, packet, uring_submit(u, count));
	uring_keep_order(packet, n);
}
