/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TAP_H
#define TAP_H

#include <sys/types.h>
#include <sys/uio.h>

ssize_t tap_read(int fd, const struct iovec *iov, int n);
ssize_t tap_write(int fd, const struct iovec *iov, int n);

#endif
