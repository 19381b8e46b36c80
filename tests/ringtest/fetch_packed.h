/* SPDX-License-Identifier: Apache-2.0 */
/* The chains of fetch.c in a packed ring. */

/* Descriptor number i of the chain; all but the flags of the first are there. */
static struct master_packed_desc *put(unsigned int i, uint32_t len,
				      uint16_t flags)
{
	struct master_packed_desc *d =
		master_at(&m, master_add(m.published, i));

	master_put(&m, 1 + i);
	d->len = len;
	d->flags |= flags;
	return d;
}

/* Three descriptors of the ring. */
static void direct(void)
{
	put(0, 10, 0);
	put(1, 20, MASTER_NEXT);
	put(2, 30, 0);
	m.first_flags = MASTER_NEXT;
}

static void indirect_at(size_t offset)
{
	struct master_packed_desc *d = put(0, 3 * sizeof(*d), 0);
	struct master_packed_desc link = {0};

	d->addr = master_guest(offset);
	m.first_flags = MASTER_INDIRECT;
	for (uint16_t i = 0; i < 3; i++) {
		link.addr = master_buffer(i);
		link.len = 10 + i;
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

/* Values that fail a check: read twice, the first or the second may pass. */
static void bad_length(void)
{
	direct();
	master_at(&m, master_add(m.published, 1))->len = UINT32_MAX;
}

static void bad_direction(void)
{
	direct();
	master_at(&m, master_add(m.published, 1))->flags |= MASTER_WRITE;
}

static void bad_table_length(void)
{
	indirect();
	master_at(&m, m.published)->len = 0;
}

static const struct fetch_case cases[] = {
	{"direct", direct},
	{"indirect", indirect},
	{"unaligned", unaligned},
	{"bad-length", bad_length},
	{"bad-direction", bad_direction},
	{"bad-table-length", bad_table_length},
};
