// SPDX-License-Identifier: Apache-2.0
/*
 * A read has RWF_NOWAIT for pipes, sockets and eventfds, and a write has it for
 * the first two.  A write to an eventfd waits while the counter is full, unless
 * the file is non-blocking, and another process may see to both.  But the
 * kernel itself adds to an eventfd, without a wait, when an asynchronous read
 * ends that names it (io_submit(2), IOCB_FLAG_RESFD).  So we submit a read of
 * no bytes from the eventfd: it ends at once, with an error at which we do not
 * look, and changes nothing.  (eventfd_signal.py does the same.)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "notifier.h"

/**
 * notifier_init() - Prepare to signal eventfds
 * @s:		Signaller; without a context notifier_signal() writes, and may wait
 *
 * System calls: io_destroy, io_getevents, io_setup, io_submit.
 * System calls: fcntl(F_GETFL), fcntl(F_SETFL), preadv2, read, write.
 */
void notifier_init(struct notifier_signaller *s)
{
	s->context = 0;
	if (syscall(SYS_io_setup, NOTIFIER_RESULTS, &s->context) < 0)
		s->context = 0;
}

/**
 * notifier_deinit() - Give back what notifier_init() took
 * @s:		Signaller
 */
void notifier_deinit(struct notifier_signaller *s)
{
	if (s->context)
		syscall(SYS_io_destroy, s->context);
	s->context = 0;
}

static void notifier_unblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0)
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/**
 * notifier_drain() - Take the signals of a notifier
 * @fd:		Notifier
 *
 * It takes all signals of an eventfd.  Of a pipe or a socket it takes a bounded
 * number; what is left makes epoll_wait() return again.
 *
 * Return: 1: there were signals; 0: there were none; -EPIPE: the other end is
 *	   closed; -errno: it cannot be read
 */
int notifier_drain(int fd)
{
	char data[4096];
	struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
	ssize_t r = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);

	/* An eventfd before Linux 5.8, a pipe or a socket before 6.5. */
	if (r < 0 && errno == EOPNOTSUPP) {
		notifier_unblock(fd);
		r = read(fd, data, sizeof(data));
	}
	if (r > 0)
		return 1;
	if (!r)
		return -EPIPE;
	return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

static int notifier_submit(struct notifier_signaller *s, int fd)
{
	struct iocb read = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = fd,
	};
	struct iocb *one = &read;

	return syscall(SYS_io_submit, s->context, 1, &one) == 1 ? 0 : -errno;
}

static void notifier_forget_results(struct notifier_signaller *s)
{
	struct io_event results[NOTIFIER_RESULTS];
	struct timespec no_time = {0};

	syscall(SYS_io_getevents, s->context, 0, NOTIFIER_RESULTS, results,
		&no_time);
}

static void notifier_write(int fd)
{
	uint64_t one = 1;
	struct iovec iov = {.iov_base = &one, .iov_len = sizeof(one)};

	if (pwritev2(fd, &iov, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP)
		return;
	/* An eventfd; a pipe or a socket before Linux 6.5. */
	notifier_unblock(fd);
	(void)!write(fd, &one, sizeof(one));
}

/**
 * notifier_signal() - Signal a notifier once more
 * @s:		Signaller
 * @fd:		Notifier; one that is full or abandoned needs no signal
 * @is_eventfd:	Whether it is an eventfd
 */
void notifier_signal(struct notifier_signaller *s, int fd, bool is_eventfd)
{
	if (!is_eventfd || !s->context) {
		notifier_write(fd);
		return;
	}
	/*
	 * EAGAIN: the results fill all of their room, and only then do we look
	 * at them: a system call for each signal would be too much.
	 */
	if (notifier_submit(s, fd) == -EAGAIN) {
		notifier_forget_results(s);
		notifier_submit(s, fd);
	}
}
