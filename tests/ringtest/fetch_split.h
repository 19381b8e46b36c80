/* SPDX-License-Identifier: Apache-2.0 */
/* The chains of fetch.c in a split ring. */

static void put(struct master_desc *at, uint64_t addr, uint32_t len,
		uint16_t flags, uint16_t next)
{
	*at = (struct master_desc){addr, len, flags, next};
}

/* Three descriptors of the ring's own table. */
static void direct(void)
{
	struct master_desc *desc = master_ring(&m)->desc;

	master_put(&m, 2);
	put(&desc[2], master_buffer(2), 10, MASTER_NEXT, 5);
	put(&desc[5], master_buffer(5), 20, MASTER_NEXT, 3);
	put(&desc[3], master_buffer(3), 30, 0, 4);
}

static void indirect_at(size_t offset)
{
	struct master_desc *desc = master_ring(&m)->desc;
	struct master_desc link;

	master_put(&m, 2);
	put(&desc[2], master_guest(offset), 3 * sizeof(link), MASTER_INDIRECT,
	    0);
	for (uint16_t i = 0; i < 3; i++) {
		put(&link, master_buffer(i), 10 + i, i < 2 ? MASTER_NEXT : 0,
		    i + 1);
		memcpy(m.memory + offset + i * sizeof(link), &link,
		       sizeof(link));
	}
}

static void indirect(void)
{
	indirect_at(MASTER_TABLE);
}

/* Such a table is read byte by byte. */
static void unaligned(void)
{
	indirect_at(MASTER_TABLE + 5);
}

static void direct_then_indirect(void)
{
	struct master_desc *desc = master_ring(&m)->desc;

	indirect();
	desc[7] = desc[2];
	put(&desc[2], master_buffer(2), 10, MASTER_NEXT, 7);
}

/* Values that fail a check: read twice, the first or the second may pass. */
static void bad_head(void)
{
	master_put(&m, 2);
	master_ring(&m)->avail.ring[start % MASTER_NUM] = MASTER_NUM;
}

static void bad_next(void)
{
	direct();
	master_ring(&m)->desc[5].next = MASTER_NUM;
}

static void bad_length(void)
{
	direct();
	master_ring(&m)->desc[5].len = UINT32_MAX;
}

static void bad_table_length(void)
{
	indirect();
	master_ring(&m)->desc[2].len = 0;
}

static const struct fetch_case cases[] = {
	{"direct", direct},
	{"indirect", indirect},
	{"unaligned", unaligned},
	{"direct-then-indirect", direct_then_indirect},
	{"bad-head", bad_head},
	{"bad-next", bad_next},
	{"bad-length", bad_length},
	{"bad-table-length", bad_table_length},
};
