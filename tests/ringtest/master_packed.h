/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver of one packed virtqueue, in place of the split one of master.h.
 * What it does and in which order is VIRTIO's "Packed Virtqueues".
 *
 * avail_idx, kicked and last_used are positions: an index, and in bit 15 the
 * wrap counter.
 */
#ifndef MASTER_PACKED_H
#define MASTER_PACKED_H

enum {
	MASTER_AVAIL = 1 << 7,
	MASTER_USED = 1 << 15
};

struct master_packed_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

struct master_ring {
	struct master_packed_desc desc[MASTER_NUM];
	uint32_t wish; /* of the driver, for calls: position | flags << 16 */
	uint32_t device_wish;
};

static inline struct master_ring *master_ring(struct master *m)
{
	return (void *)m->memory;
}

static inline uint16_t master_add(uint16_t at, unsigned int n)
{
	unsigned int i = (at & 0x7fff) + n;

	return i < MASTER_NUM ? at + n : (i - MASTER_NUM) | (~at & 0x8000);
}

static inline unsigned int master_distance(uint16_t from, uint16_t to)
{
	unsigned int n = 0;

	for (; from != to && n < 2 * MASTER_NUM; n++)
		from = master_add(from, 1);
	return n;
}

static inline struct master_packed_desc *master_at(struct master *m,
						   uint16_t at)
{
	return &master_ring(m)->desc[at & 0x7fff];
}

static inline uint16_t master_used_flags(uint16_t at)
{
	return at & 0x8000 ? MASTER_AVAIL | MASTER_USED : 0;
}

/* Each test's start, in either format: 0, or two before the end of a lap. */
static inline uint16_t master_start(uint16_t start)
{
	return start ? MASTER_NUM - 2 : 0x8000;
}

static inline int master_init(struct master *m, uint16_t start, bool event_idx)
{
	struct mem_region region = {MASTER_GUEST, MASTER_SIZE,
				    (uintptr_t)m->memory};
	struct ring_conf conf = {
		.desc = MASTER_GUEST + offsetof(struct master_ring, desc),
		.driver = MASTER_GUEST + offsetof(struct master_ring, wish),
		.device = MASTER_GUEST +
			  offsetof(struct master_ring, device_wish),
		.size = MASTER_NUM,
		.base = master_start(start),
		.flags = RING_PACKED | RING_INDIRECT |
			 (event_idx ? RING_EVENT_IDX : 0),
	};
	int r;

	memset(m->memory, 0, sizeof(m->memory));
	m->event_idx = event_idx;
	m->avail_idx = m->kicked = m->last_used = m->published = conf.base;
	for (uint16_t i = 0; i < MASTER_NUM; i++)
		master_at(m, i)->flags = master_used_flags(
			i < (conf.base & 0x7fff) ? conf.base : ~conf.base);
	/* Neither side has asked for anything yet. */
	master_ring(m)->wish = 1 << 16;
	master_ring(m)->device_wish = 1 << 16;
	r = mem_set(&m->mem, &region, 1);
	return r ? r : vq_init(&m->vq, &m->mem, &conf, false);
}

/* Fill the next descriptor, but for the flags of the first unpublished one. */
static inline void master_put(struct master *m, uint16_t head)
{
	struct master_packed_desc *d = master_at(m, m->avail_idx);

	d->addr = master_buffer(head);
	d->len = MASTER_BUFFER;
	d->id = head;
	if (m->avail_idx != m->published)
		d->flags = m->avail_idx & 0x8000 ? MASTER_AVAIL : MASTER_USED;
	m->avail_idx = master_add(m->avail_idx, 1);
}

/* Release: the device must see the rest before the first one's flags. */
static inline void master_publish(struct master *m)
{
	uint16_t flags = m->published & 0x8000 ? MASTER_AVAIL : MASTER_USED;

	flags |= m->first_flags;
	__atomic_store_n(&master_at(m, m->published)->flags, flags,
			 __ATOMIC_RELEASE);
	m->published = m->avail_idx;
}

/* "Driver and Device Event Suppression" */
static inline bool master_must_kick(struct master *m)
{
	uint16_t old = m->kicked;
	uint32_t wish;

	m->kicked = m->avail_idx;
	/* The descriptors are visible before we read what the device wants. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	wish = __atomic_load_n(&master_ring(m)->device_wish, __ATOMIC_RELAXED);
	if (wish >> 16 != 2)
		return wish >> 16 != 1;
	return master_distance(old, wish) < master_distance(old, m->avail_idx);
}

/* Ask for an interrupt with the next used chain, or for none. */
static inline void master_ask_for_call(struct master *m, bool wanted)
{
	uint32_t wish = 1 << 16;

	if (wanted)
		wish = m->event_idx ? m->last_used | 2 << 16 : 0;
	__atomic_store_n(&master_ring(m)->wish, wish, __ATOMIC_RELAXED);
	/* The wish is visible before we look at the next descriptor. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/*
 * Acquire: what is in the descriptor, and in those behind it, was written before
 * it was used.  Length, id and flags are one word, as the device writes them.
 */
static inline uint64_t master_word(struct master *m)
{
	const void *word = &master_at(m, m->last_used)->len;

	return __atomic_load_n((const uint64_t *)word, __ATOMIC_ACQUIRE);
}

static inline bool master_has_used(struct master *m)
{
	return (master_word(m) >> 48 & (MASTER_AVAIL | MASTER_USED)) ==
	       master_used_flags(m->last_used);
}

/* Take a used chain. */
static inline void master_collect(struct master *m, uint32_t *id, uint32_t *len)
{
	uint64_t word = master_word(m);

	*len = word;
	*id = word >> 32 & 0xffff;
	m->last_used = master_add(m->last_used, 1);
}

#endif
