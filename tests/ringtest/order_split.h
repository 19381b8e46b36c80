/* SPDX-License-Identifier: Apache-2.0 */
/* The cases of order.c that know where a split ring has its parts. */

/* The new descriptor and slot arrive late, the new avail idx early. */
static void avail(void)
{
	struct machine machine = machine_of(NULL, MACHINE_NEVER);
	struct master_ring *ring = master_ring(&m);
	const struct master_desc fresh = {master_buffer(3), 5, 0, 0};
	const uint16_t head = 3;
	struct vq_chain chain;

	init();
	warm_up();
	/* Stale, and not at all hostile. */
	ring->desc[3] = (struct master_desc){master_buffer(6), 7, 0, 0};
	ring->desc[4] = (struct master_desc){master_buffer(4), 9, 0, 0};
	ring->avail.ring[m.avail_idx % MASTER_NUM] = 4;

	machine_hold_back(&ring->desc[3], &fresh.addr, 8, &ring->avail.idx);
	machine_hold_back(&ring->desc[3].len, &fresh.len, 8, &ring->avail.idx);
	machine_hold_back(&ring->avail.ring[m.avail_idx % MASTER_NUM], &head, 2,
			  &ring->avail.idx);
	m.avail_idx++;
	master_publish(&m);

	machine_start(&machine);
	if (vq_next(&m.vq, iov, &chain))
		die("the chain does not come");
	machine_stop();
	if (chain.head != 3)
		die("avail idx is new, the head of the chain is stale");
	if (chain.len != 5 ||
	    iov[0].iov_base != m.memory + MASTER_BUFFERS + 3 * MASTER_BUFFER)
		die("avail idx is new, the descriptor is stale");
}

/* The driver reads the used elements as soon as it sees used idx. */
static void read_used(void *arg)
{
	struct master_ring *ring = master_ring(&m);

	(void)arg;
	acts++;
	while (master_has_used(&m)) {
		uint16_t i = m.last_used - (uint16_t)(start + 1);
		uint16_t slot = m.last_used % MASTER_NUM;

		if (ring->used.ring[slot].id != 2U + i)
			die("used idx is new, the head of chain %u is stale",
			    i);
		if (ring->used.ring[slot].len != 100U + i)
			die("used idx is new, the length of chain %u is stale",
			    i);
		m.last_used++;
	}
}

static void used(void)
{
	struct machine machine = machine_of(NULL, MACHINE_NEVER);
	struct master_ring *ring = master_ring(&m);
	struct vq_chain chain;

	init();
	warm_up();
	memset(ring->used.ring, 0xff, sizeof(ring->used.ring));
	for (uint16_t i = 0; i < 3; i++)
		master_put(&m, 2 + i);
	master_publish(&m);
	for (uint16_t i = 0; i < 3; i++) {
		if (vq_next(&m.vq, iov, &chain))
			die("chain %u does not come", i);
		vq_complete(&m.vq, &chain, 100 + i, false);
	}
	machine.eager = &ring->used.idx;
	machine.seen = read_used;
	machine_start(&machine);
	vq_update_used(&m.vq);
	machine_stop();
	if (acts != 1 || m.last_used != (uint16_t)(start + 4))
		die("the driver has seen used idx move %d times", acts);
}
