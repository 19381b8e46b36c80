/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relays of a process, and their thread.
 *
 * cffi reads this file, and the compiler does: it has neither #include nor #if.
 *
 * A relay passes the signals of a source on to a target.  Each is an eventfd,
 * or a pipe's end or a Unix stream socket in its place.  All functions but
 * relay_count() are for the process that has made the thread: in a child of it
 * they return -ECHILD and do nothing.  Functions that return an int return
 * -errno after a failure.
 */

enum {
	RELAY_MAX = 65536, /* relays at a time */
};

struct relay_thread;

int relay_create(struct relay_thread **ret);
int relay_destroy(struct relay_thread *t);
int relay_add(struct relay_thread *t, int32_t source, int32_t target,
	      uint32_t target_is_eventfd);
int relay_remove(struct relay_thread *t, uint32_t number, uint64_t *count,
		 int32_t *error);
uint64_t relay_count(const struct relay_thread *t, uint32_t number);
int relay_may_wait(const struct relay_thread *t);
