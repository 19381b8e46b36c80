/* SPDX-License-Identifier: Apache-2.0 */
#ifndef THREAD_H
#define THREAD_H

#include <pthread.h>

int thread_start(pthread_t *thread, void *(*run)(void *), void *arg,
		 const char *name);

#endif
