/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stdint.h>
#include "barrier.h"
#include "ring_api.h"

#define RING_CACHELINE 64

/* Counters have one writer, the worker; worker_read_ring() may look on. */
#define RING_COUNT_ADD(counter, n) write_once(&(counter), (counter) + (n))

#endif
