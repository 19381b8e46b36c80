/* SPDX-License-Identifier: Apache-2.0 */
#ifndef URING_H
#define URING_H

#include <stddef.h>
#include "tap.h"

enum {
	URING_PACKETS = 32 /* of one batch at most */
};

struct io_uring_cqe;
struct io_uring_sqe;

struct uring {
	bool open;
	bool links; /* a packet that fails ends its batch: see uring.c */
	bool nowait; /* requests have RWF_NOWAIT */
	int error; /* errno: why packets go another way; 0: they do not */
	int fd;
	uint32_t *sq_head; /* the kernel moves this one, and cq_tail */
	uint32_t *sq_tail;
	uint32_t *cq_head;
	uint32_t *cq_tail;
	uint32_t sq_mask;
	uint32_t cq_mask;
	struct io_uring_sqe *sqes;
	const struct io_uring_cqe *cqes;
	void *map; /* both rings */
	size_t map_size;
	size_t sqes_size;
};

int uring_open(struct uring *u);
void uring_close(struct uring *u);
void uring_start(struct uring *u, int fd);
void uring_write(struct uring *u, int fd, struct tap_packet *packet,
		 uint32_t n);

/* May packets go this way? */
static inline bool uring_ready(const struct uring *u)
{
	return u->open && !u->error;
}

#endif
