/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stdint.h>
#include "barrier.h"
#include "ring_api.h"

#define RING_CACHELINE 64

/*
 * Only the worker writes its counters, so load and store need not be one step.
 * Atomic, because worker_read_ring() reads them from another thread.
 */
#define RING_COUNT_ADD(counter, n) write_once(&(counter), (counter) + (n))

#endif
