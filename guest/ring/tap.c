// SPDX-License-Identifier: Apache-2.0
/*
 * One system call for each packet: a TAP has neither recvmmsg() nor sendmmsg().
 * rx.c and tx.c decide what an error means.
 */
#include <errno.h>
#include <unistd.h>
#include "tap.h"

/**
 * tap_read() - Read one packet, net header first
 * @fd:		TAP queue, non-blocking
 * @iov:	Where to put it
 * @n:		Number of @iov
 *
 * Return: its length, or -errno; -EPIPE at the end of the file, which a TAP
 *	   never has, but a socket that stands in for one
 */
ssize_t tap_read(int fd, const struct iovec *iov, int n)
{
	ssize_t r;

	do {
		r = readv(fd, iov, n);
	} while (r < 0 && errno == EINTR);
	if (!r)
		return -EPIPE;
	return r < 0 ? -errno : r;
}

/**
 * tap_write() - Write one packet, net header first
 * @fd:		TAP queue, non-blocking
 * @iov:	The packet
 * @n:		Number of @iov
 *
 * Return: bytes written, or -errno
 */
ssize_t tap_write(int fd, const struct iovec *iov, int n)
{
	ssize_t r;

	do {
		/* Most packets are one vector, and cost a tenth less so. */
		r = n == 1 ? write(fd, iov->iov_base, iov->iov_len)
			   : writev(fd, iov, n);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}
