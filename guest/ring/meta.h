/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring's entry in the metadata, which the daemon may write at any time.  C
 * reads only the session number, while packets move.  The agent reads the rest
 * and makes a struct ring_conf of it.
 */
#ifndef META_H
#define META_H

#include <assert.h>
#include <endian.h>
#include <stddef.h>
#include "ring.h"

static_assert(sizeof(struct ring_meta) == 64, "one cache line");
static_assert(offsetof(struct ring_meta, session) == 0, "layout");
static_assert(offsetof(struct ring_meta, flags) == 8, "layout");
static_assert(offsetof(struct ring_meta, size) == 12, "layout");
static_assert(offsetof(struct ring_meta, desc) == 16, "layout");
static_assert(offsetof(struct ring_meta, driver) == 24, "layout");
static_assert(offsetof(struct ring_meta, device) == 32, "layout");
static_assert(offsetof(struct ring_meta, base) == 40, "layout");
static_assert(offsetof(struct ring_meta, kick_vector) == 44, "layout");
static_assert(offsetof(struct ring_meta, call_peer) == 46, "layout");
static_assert(offsetof(struct ring_meta, call_vector) == 48, "layout");
static_assert(offsetof(struct ring_meta, reserved) == 52, "layout");
static_assert(offsetof(struct ring_meta, origin) == 56, "layout");

/*
 * Relaxed: the number only says who may use the ring.  It does not announce
 * other data, so no load after it must be kept behind it.
 */
static inline uint64_t meta_session(const struct ring_meta *meta)
{
	return le64toh(read_once(&meta->session));
}

#endif
