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

struct fetch_case {
	const char *name;
	void (*offer)(void);
};

#ifdef PACKED
#include "fetch_packed.h"
#else
#include "fetch_split.h"
#endif

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
