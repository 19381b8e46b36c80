// SPDX-License-Identifier: Apache-2.0
#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "net.h"

static_assert(VQ_MAX_DONE < 1 << RING_BATCHES,
	      "each batch that is possible has its count");

static bool net_is_socket(int fd)
{
	struct stat st;

	return fd >= 0 && !fstat(fd, &st) && S_ISSOCK(st.st_mode);
}

/**
 * net_init() - Start with a queue
 * @q:		Queue; its stats go on counting
 * @mem:	The master's memory
 * @conf:	The ring
 * @writable:	The queue is the receive queue
 *
 * Return: 0; -EINVAL: the header's or the packet's length, or the doorbell's
 *	   alignment is wrong; or as vq_init()
 */
int net_init(struct net_queue *q, const struct mem *mem,
	     const struct ring_conf *conf, bool writable)
{
	bool mergeable = conf->flags & RING_MRG_RXBUF;
	int r;

	if (conf->hdr_len != NET_HDR_LEN && conf->hdr_len != NET_HDR_MRG_LEN)
		return -EINVAL;
	/* num_buffers is in the longer header only. */
	if (mergeable && conf->hdr_len != NET_HDR_MRG_LEN)
		return -EINVAL;
	if (!conf->max_packet || conf->max_packet > RING_MAX_PACKET ||
	    conf->call_addr % sizeof(*q->call_addr))
		return -EINVAL;
	r = vq_init(&q->vq, mem, conf, writable);
	if (r)
		return r;

	q->wait = NET_WAIT_NOT;
	q->error = 0;
	q->failures = 0;
	q->call_fd = conf->call_fd;
	q->call_is_socket = net_is_socket(conf->call_fd);
	q->call_addr = (void *)(uintptr_t)conf->call_addr;
	q->call_value = conf->call_value;
	q->hdr_len = conf->hdr_len;
	q->max_packet = conf->max_packet;
	q->mergeable = mergeable;
	q->segment_udp = conf->flags & RING_SEGMENT_UDP;
	return 0;
}

static void net_call(struct net_queue *q)
{
	uint64_t one = 1;

	RING_COUNT_ADD(q->stats.calls, 1);
	if (q->call_addr)
		/* Release: the used ring must be visible before the call. */
		store_release(q->call_addr, htole32(q->call_value));
	else if (q->call_is_socket)
		/*
		 * EAGAIN: it is full of calls.  By the flag of this call, as
		 * the master may have made the socket blocking.
		 */
		(void)!send(q->call_fd, &one, sizeof(one),
			    MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (q->call_fd >= 0)
		/* EAGAIN: the counter is full, so the call is pending. */
		(void)!write(q->call_fd, &one, sizeof(one));
}

/**
 * net_flush() - Give completed chains back, and call the master if it asked
 * @q:		Queue
 *
 * Return: 0 or -ESTALE
 */
int net_flush(struct net_queue *q)
{
	uint32_t n = q->vq.n_done;
	int r;

	if (!n)
		return 0;
	r = vq_update_used(&q->vq);
	if (r < 0)
		return r;
	RING_COUNT_ADD(q->stats.used_updates, 1);
	RING_COUNT_ADD(q->stats.batches[31 - __builtin_clz(n)], 1);
	if (r)
		net_call(q);
	else
		RING_COUNT_ADD(q->stats.calls_suppressed, 1);
	return 0;
}

/**
 * net_begin_pass() - Check the fence, and note where the pass begins
 * @q:		Queue
 *
 * Return: 0 or -ESTALE
 */
int net_begin_pass(struct net_queue *q)
{
	q->pass_avail = q->vq.last_avail;
	q->pass_quiet = q->vq.kicks == VQ_KICKS_OFF;
	return vq_check_fence(&q->vq);
}

/**
 * net_end_pass() - Give completed chains back, and decide what the pass returns
 * @q:		Queue
 * @r:		How the last packet ended: 0 or -errno
 * @n:		Number of chains or packets handled
 *
 * Chains completed before a fault are given back too: they were correct.
 *
 * Return: @n; or -errno if the ring must not be used any more
 */
int net_end_pass(struct net_queue *q, int r, int n)
{
	int flushed;

	if (q->pass_quiet && q->vq.last_avail != q->pass_avail)
		RING_COUNT_ADD(q->stats.kicks_suppressed, 1);
	/* The ring belongs to another back-end: it must not be written to. */
	if (r == -ESTALE)
		return r;
	flushed = net_flush(q);
	if (flushed)
		return flushed;
	return r && r != -EAGAIN ? r : n;
}

/**
 * net_tap_fault() - Record an error of the TAP that ends the ring
 * @q:		Queue
 * @error:	errno
 *
 * EFAULT is not the fault of the TAP: all buffers lie in the master's memory, so
 * that memory was taken away (guard.c), or its file system has no page left.
 *
 * Return: -EPROTO
 */
int net_tap_fault(struct net_queue *q, int error)
{
	q->vq.fault = error == EFAULT ? RING_FAULT_MEMORY : RING_FAULT_TAP;
	q->error = error;
	return -EPROTO;
}

/**
 * net_tap_failure() - Pause after a failure of the TAP that may pass
 * @q:		Queue
 * @error:	errno
 *
 * The pauses keep the number of packets low that are lost meanwhile, because
 * each read of a TAP takes a packet out of it, also one that fails.
 *
 * Return: -EAGAIN; -EPROTO if it was the last of NET_FAILURES
 */
int net_tap_failure(struct net_queue *q, int error)
{
	uint32_t doublings = q->failures;

	if (++q->failures == NET_FAILURES)
		return net_tap_fault(q, error);
	if (doublings > NET_PAUSE_DOUBLINGS)
		doublings = NET_PAUSE_DOUBLINGS;
	q->resume_at = net_now() + ((uint64_t)NET_PAUSE_MIN << doublings);
	return net_set_wait(q, NET_WAIT_PAUSE);
}

/**
 * net_paused() - Check whether the queue must wait after a failure of the TAP
 * @q:		Queue
 *
 * Return: true if a pass must do nothing yet
 */
bool net_paused(const struct net_queue *q)
{
	return q->wait == NET_WAIT_PAUSE && net_now() < q->resume_at;
}

/**
 * net_now() - Read the clock for deadlines
 *
 * Return: CLOCK_MONOTONIC in ns
 */
uint64_t net_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
