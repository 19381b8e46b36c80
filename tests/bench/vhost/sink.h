/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SINK_H
#define SINK_H

#include <stdint.h>

void sink_offer(unsigned int packets, uint32_t size);

#endif
