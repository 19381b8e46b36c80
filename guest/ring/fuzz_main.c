// SPDX-License-Identifier: Apache-2.0
/*
 * Runs the fuzzer of fuzz.c without libFuzzer.
 *
 * fuzz FILE...		run these inputs
 * fuzz COUNT [SEED]	run so many pseudo-random inputs, the first from SEED
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int fuzz_file(const char *name)
{
	static uint8_t data[1 << 16];
	FILE *file = fopen(name, "rb");
	size_t size;

	if (!file) {
		perror(name);
		return 1;
	}
	size = fread(data, 1, sizeof(data), file);
	fclose(file);
	return LLVMFuzzerTestOneInput(data, size);
}

static void fuzz_random(unsigned long seed)
{
	static uint8_t data[4096];
	uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;
	size_t size;

	for (size_t i = 0; i < sizeof(data); i++) {
		x ^= x << 13; /* xorshift64 */
		x ^= x >> 7;
		x ^= x << 17;
		data[i] = x >> 32;
	}
	size = 16 + (x >> 16) % (sizeof(data) - 16);
	LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv)
{
	unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	unsigned long first = argc > 2 && n ? strtoul(argv[2], NULL, 10) : 0;

	if (!n) {
		for (int i = 1; i < argc; i++)
			if (fuzz_file(argv[i]))
				return 1;
		return 0;
	}
	for (unsigned long seed = first; seed < first + n; seed++)
		fuzz_random(seed);
	return 0;
}
