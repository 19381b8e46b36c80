/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TAP_H
#define TAP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* A packet of a batch, net header first. */
struct tap_packet {
	const struct iovec *iov;
	int n; /* vectors; 0: the packet is not to be written */
	ssize_t result; /* its length if it is written; 0: not tried; or -errno */
};

ssize_t tap_read(int fd, const struct iovec *iov, int n);
ssize_t tap_write(int fd, const struct iovec *iov, int n);

#endif
