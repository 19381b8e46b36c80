// SPDX-License-Identifier: Apache-2.0
/*
 * vq_next() reads a value of the master's memory once, into a local, and then
 * checks and uses the local.  Here it takes a chain again and again, and each
 * time another of the values it has read is changed right after the read.  The
 * chain it returns must be the one of an undisturbed run.
 *
 * fetch CASE START: exit status 0, or 1 and a line on stderr.  The case is the
 * shape of the chain.
 */
#include <stdio.h>
#include <stdlib.h>
#include "machine.h"
#include "master.h"

enum {
	IOVS = 8
};

static struct master m;
static struct iovec iov[VQ_CHAIN_IOVS];
static uint8_t reads[MASTER_SIZE];
static uint16_t start;

struct result {
	int r;
	enum ring_fault fault;
	uint16_t last_avail;
	struct vq_chain chain;
	struct iovec iov[IOVS];
};

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

static void take(void (*offer)(void), struct machine *machine, int *n,
		 struct result *result)
{
	memset(result, 0, sizeof(*result));
	memset(iov, 0, sizeof(iov));
	memset(reads, 0, sizeof(reads));
	if (master_init(&m, start, false))
		die("the ring does not start");
	offer();
	master_publish(&m);
	machine_start(machine);
	result->r = vq_next(&m.vq, iov, &result->chain);
	*n = machine_stop();
	result->fault = m.vq.fault;
	result->last_avail = m.vq.last_avail;
	memcpy(result->iov, iov, sizeof(result->iov));
}

static void check_counts(int n)
{
	if (n < 3)
		die("vq_next() takes a chain with %d accesses", n);
	for (size_t i = 0; i < sizeof(reads); i++)
		if (reads[i] > 1)
			die("the byte at offset %#zx was read %d times", i,
			    reads[i]);
}

static void check(void (*offer)(void))
{
	static const uint8_t changes[][2] = {
		{0, 0xff}, {0, 0}, {0xff, 1}, {0xff, 8}, {0xff, 0x80}};
	struct machine machine = {.memory = m.memory,
				  .size = sizeof(m.memory),
				  .at = MACHINE_NEVER,
				  .poison = MACHINE_NEVER,
				  .reads = reads};
	struct result expected, result;
	int n, disturbed;

	take(offer, &machine, &n, &expected);
	for (size_t i = 0; i < sizeof(changes) / sizeof(*changes); i++) {
		machine.poison_and = changes[i][0];
		machine.poison_xor = changes[i][1];
		for (machine.poison = 0; machine.poison < n; machine.poison++) {
			take(offer, &machine, &disturbed, &result);
			if (disturbed != n ||
			    memcmp(&result, &expected, sizeof(result)))
				die("the value of access %d of %d is read"
				    " again: changed by & %#x ^ %#x, it"
				    " changes what vq_next() returns",
				    machine.poison, n, machine.poison_and,
				    machine.poison_xor);
		}
	}
	/* Also a second read that changes nothing today is one too many. */
	machine.poison = MACHINE_NEVER;
	take(offer, &machine, &n, &result);
	check_counts(n);
}

static const struct {
	const char *name;
	void (*offer)(void);
} cases[] = {
	{"direct", direct},
	{"indirect", indirect},
	{"unaligned", unaligned},
	{"direct-then-indirect", direct_then_indirect},
	{"bad-head", bad_head},
	{"bad-next", bad_next},
	{"bad-length", bad_length},
	{"bad-table-length", bad_table_length},
};

int main(int argc, char **argv)
{
	if (argc != 3)
		die("usage: fetch CASE START");
	start = strtoul(argv[2], NULL, 10);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		if (strcmp(argv[1], cases[i].name))
			continue;
		check(cases[i].offer);
		return 0;
	}
	die("%s: no such case", argv[1]);
	return 1;
}
