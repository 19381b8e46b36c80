/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver of one split virtqueue.  What it does and in which order is VIRTIO's
 * "Split Virtqueues".
 */
#ifndef MASTER_SPLIT_H
#define MASTER_SPLIT_H

/* The parts of the ring, where the driver and the device find them. */
struct master_ring {
	struct master_desc desc[MASTER_NUM];
	struct {
		uint16_t flags;
		uint16_t idx;
		uint16_t ring[MASTER_NUM];
		uint16_t used_event;
	} avail;
	struct {
		uint16_t flags;
		uint16_t idx;
		struct {
			uint32_t id;
			uint32_t len;
		} ring[MASTER_NUM];
		uint16_t avail_event;
	} used __attribute__((aligned(4)));
};

static inline struct master_ring *master_ring(struct master *m)
{
	return (void *)m->memory;
}

static inline int master_init(struct master *m, uint16_t start, bool event_idx)
{
	struct mem_region region = {MASTER_GUEST, MASTER_SIZE,
				    (uintptr_t)m->memory};
	struct ring_conf conf = {
		.desc = master_guest(offsetof(struct master_ring, desc)),
		.driver = master_guest(offsetof(struct master_ring, avail)),
		.device = master_guest(offsetof(struct master_ring, used)),
		.size = MASTER_NUM,
		.base = start,
		.flags = RING_INDIRECT | (event_idx ? RING_EVENT_IDX : 0),
	};
	int r;

	memset(m->memory, 0, sizeof(m->memory));
	m->event_idx = event_idx;
	m->avail_idx = m->kicked = m->last_used = start;
	master_ring(m)->avail.idx = start;
	master_ring(m)->used.idx = start;
	/* Neither side has asked for anything yet. */
	master_ring(m)->avail.flags = 1;
	master_ring(m)->avail.used_event = start - 1;
	master_ring(m)->used.flags = 1;
	master_ring(m)->used.avail_event = start - 5;
	r = mem_set(&m->mem, &region, 1);
	return r ? r : vq_init(&m->vq, &m->mem, &conf, false);
}

/* Fill a descriptor and the next slot of the avail ring. */
static inline void master_put(struct master *m, uint16_t head)
{
	struct master_ring *ring = master_ring(m);

	ring->desc[head].addr = master_buffer(head);
	ring->desc[head].len = MASTER_BUFFER;
	ring->desc[head].flags = 0;
	ring->avail.ring[m->avail_idx % MASTER_NUM] = head;
	m->avail_idx++;
}

/* Release: the device must see the descriptors before the index. */
static inline void master_publish(struct master *m)
{
	__atomic_store_n(&master_ring(m)->avail.idx, m->avail_idx,
			 __ATOMIC_RELEASE);
}

/* "Available Buffer Notification Suppression" */
static inline bool master_must_kick(struct master *m)
{
	struct master_ring *ring = master_ring(m);
	uint16_t old = m->kicked, event;

	m->kicked = m->avail_idx;
	/* avail idx is visible before we read what the device asked for. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!m->event_idx)
		return !__atomic_load_n(&ring->used.flags, __ATOMIC_RELAXED);
	event = __atomic_load_n(&ring->used.avail_event, __ATOMIC_RELAXED);
	return (uint16_t)(m->avail_idx - event - 1) <
	       (uint16_t)(m->avail_idx - old);
}

/* Ask for an interrupt with the next used chain, or for none. */
static inline void master_ask_for_call(struct master *m, bool wanted)
{
	struct master_ring *ring = master_ring(m);

	__atomic_store_n(&ring->avail.flags, !wanted, __ATOMIC_RELAXED);
	__atomic_store_n(&ring->avail.used_event,
			 wanted ? m->last_used : m->last_used - 1,
			 __ATOMIC_RELAXED);
	/* The wish is visible before we look at used idx once more. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Acquire: the used elements were written before the index. */
static inline bool master_has_used(struct master *m)
{
	return __atomic_load_n(&master_ring(m)->used.idx, __ATOMIC_ACQUIRE) !=
	       m->last_used;
}

/* Take a used chain. */
static inline void master_collect(struct master *m, uint32_t *id, uint32_t *len)
{
	struct master_ring *ring = master_ring(m);
	uint16_t slot = m->last_used % MASTER_NUM;

	*id = ring->used.ring[slot].id;
	*len = ring->used.ring[slot].len;
	m->last_used++;
}

#endif
