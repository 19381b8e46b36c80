/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking signals and passing them on, without ever waiting.
 *
 * A notifier is an open file that other processes have, too.  They may make it
 * blocking, and take its signals or fill its counter, between any two of our
 * system calls.  So no call here relies on O_NONBLOCK where there is a way
 * without it.
 */
#ifndef NOTIFIER_H
#define NOTIFIER_H

#include <linux/aio_abi.h>
#include <stdbool.h>

enum {
	NOTIFIER_RESULTS = 64
};

/* Signals eventfds: see notifier.c. */
struct notifier_signaller {
	aio_context_t context; /* 0: this machine gives none */
};

void notifier_init(struct notifier_signaller *s);
void notifier_deinit(struct notifier_signaller *s);
int notifier_drain(int fd);
void notifier_signal(struct notifier_signaller *s, int fd, bool is_eventfd);

#endif
