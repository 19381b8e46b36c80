/* SPDX-License-Identifier: Apache-2.0 */
/* The cases of order.c that know where a packed ring has its parts. */

/* The rest of the descriptor arrives late, its flags early. */
static void avail(void)
{
	struct machine machine = machine_of(NULL, MACHINE_NEVER);
	const struct master_packed_desc fresh = {master_buffer(3), 5, 3, 0};
	struct master_packed_desc *d;
	struct vq_chain chain;

	init();
	warm_up();
	d = master_at(&m, m.avail_idx);
	/* Stale, and not at all hostile. */
	d->addr = master_buffer(6);
	d->len = 7;
	d->id = 4;

	machine_hold_back(&d->addr, &fresh.addr, 8, &d->flags);
	machine_hold_back(&d->len, &fresh.len, 4, &d->flags);
	machine_hold_back(&d->id, &fresh.id, 2, &d->flags);
	m.avail_idx = master_add(m.avail_idx, 1);
	master_publish(&m);

	machine_start(&machine);
	if (vq_next(&m.vq, iov, &chain))
		die("the chain does not come");
	machine_stop();
	if (chain.head != 3 || chain.len != 5 ||
	    iov[0].iov_base != m.memory + MASTER_BUFFERS + 3 * MASTER_BUFFER)
		die("the flags are new, the descriptor is stale");
}

/* The driver reads all descriptors of a packet as soon as it sees the first. */
static void read_used(void *arg)
{
	(void)arg;
	if (!master_has_used(&m))
		return;
	acts++;
	for (uint32_t i = 0; i < 3; i++) {
		uint32_t id, len;

		if (!master_has_used(&m))
			die("the first descriptor is used, number %u is not",
			    i);
		master_collect(&m, &id, &len);
		if (id != 2 + i || len != 100 + i)
			die("descriptor %u is used, and stale", i);
	}
}

static void used(void)
{
	struct machine machine = machine_of(NULL, MACHINE_NEVER);
	struct vq_chain chain;

	init();
	warm_up();
	for (uint16_t i = 0; i < 3; i++)
		master_put(&m, 2 + i);
	machine.eager = &master_at(&m, m.published)->len;
	master_publish(&m);
	for (uint16_t i = 0; i < 3; i++) {
		if (vq_next(&m.vq, iov, &chain))
			die("chain %u does not come", i);
		vq_complete(&m.vq, &chain, 100 + i, i < 2);
	}
	machine.seen = read_used;
	machine_start(&machine);
	vq_update_used(&m.vq);
	machine_stop();
	if (acts != 1)
		die("the driver has seen %d packets", acts);
}
