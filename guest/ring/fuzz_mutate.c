// SPDX-License-Identifier: Apache-2.0
/*
 * For libFuzzer: keeps all inputs that it makes to one format of the rings, so that
 * each format gets the time that it is given.  VHOSTPCI_FUZZ_FORMAT says which:
 * "split" or "packed"; without it the inputs choose.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
	MUTATE_HOW = 1, /* the byte of an input that says the format ... */
	MUTATE_PACKED = 8 /* ... by this bit: see fuzz_init() */
};

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
			       unsigned int seed);

/**
 * LLVMFuzzerCustomMutator() - Change an input as libFuzzer does, but for the format
 * @data:	Input
 * @size:	Its length
 * @max_size:	Room at @data
 * @seed:	Unused, as libFuzzer's mutations have their own
 *
 * Return: new length
 */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
			       unsigned int seed)
{
	const char *format = getenv("VHOSTPCI_FUZZ_FORMAT");

	(void)seed;
	size = LLVMFuzzerMutate(data, size, max_size);
	if (!format || size <= MUTATE_HOW)
		return size;
	if (strcmp(format, "packed"))
		data[MUTATE_HOW] &= ~MUTATE_PACKED;
	else
		data[MUTATE_HOW] |= MUTATE_PACKED;
	return size;
}
