// SPDX-License-Identifier: Apache-2.0
/*
 * A stream of UDP datagrams from one network namespace to another one.
 *
 * udp_stream FROM TO ADDRESS SIZE COUNT SECONDS
 *	FROM, TO: files of the namespaces of the sender and of the receiver
 *	ADDRESS: of the receiver
 *	SIZE: payload of a datagram; COUNT: of datagrams in one call
 * COUNT above 1 uses UDP_SEGMENT: the kernel makes datagrams of a large packet, or
 * leaves that to the card.  The receiver takes several at once where they come so
 * (UDP_GRO).  UDP has no flow control, and a sender that fills every queue on its
 * way only measures how many are lost: so it waits while more than WINDOW bytes are
 * under way, and gives up for lost what has not come after LOST ns.
 * Prints: bytes received, bytes sent, ns.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum {
	PORT = 9001,
	LARGEST = 65507,
	WINDOW = 256 << 10,
	PAUSE = 20000, /* ns of sleep while the window is full */
	LOST = 20000000,
	SECOND = 1000000000
};

static _Atomic uint64_t received;
static atomic_bool done;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + t.tv_nsec;
}

/* A socket stays in the namespace where it was made. */
static int socket_in(int namespace)
{
	int fd;

	if (setns(namespace, CLONE_NEWNET))
		die("setns");
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0)
		die("socket");
	return fd;
}

static void *receive(void *arg)
{
	static uint8_t data[LARGEST];
	int fd = *(int *)arg;

	while (!atomic_load(&done)) {
		ssize_t n = recv(fd, data, sizeof(data), 0);

		if (n > 0)
			atomic_fetch_add(&received, n);
		else if (errno != EAGAIN)
			die("receive");
	}
	return NULL;
}

/* All before the first setns(): FROM may be this process's own namespace. */
static int open_namespace(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		die(path);
	return fd;
}

static int receiver(int namespace)
{
	struct sockaddr_in at = {.sin_family = AF_INET,
				 .sin_port = htons(PORT)};
	struct timeval patience = {.tv_usec = 100000};
	int fd = socket_in(namespace), room = 4 << 20, one = 1;

	setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof(one));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience,
		       sizeof(patience)) ||
	    bind(fd, (void *)&at, sizeof(at)))
		die("receiver");
	return fd;
}

static int sender(int namespace, const char *address, int size, int count)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons(PORT)};
	int fd = socket_in(namespace);

	if (!inet_aton(address, &to.sin_addr) ||
	    connect(fd, (void *)&to, sizeof(to)) ||
	    (count > 1 &&
	     setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof(size))))
		die("sender");
	return fd;
}

/* Wait until the window has room.  Return the bytes that are given up for lost. */
static uint64_t wait_for_room(uint64_t sent, uint64_t lost)
{
	struct timespec pause = {.tv_nsec = PAUSE};
	uint64_t last = atomic_load(&received), since = now();

	for (;;) {
		uint64_t came = atomic_load(&received);

		if (sent <= came + lost + WINDOW)
			return lost;
		if (came != last) {
			last = came;
			since = now();
		} else if (now() - since > LOST) {
			return sent - came;
		}
		nanosleep(&pause, NULL);
	}
}

int main(int argc, char **argv)
{
	static uint8_t data[LARGEST];
	uint64_t sent = 0, lost = 0, began, end;
	int size, count, to, from;
	pthread_t thread;

	if (argc != 7) {
		fputs("usage: udp_stream FROM TO ADDRESS SIZE COUNT SECONDS\n",
		      stderr);
		return 2;
	}
	size = atoi(argv[4]);
	count = atoi(argv[5]);
	if (size < 1 || count < 1 || size * count > LARGEST)
		return 2;
	from = open_namespace(argv[1]);
	to = open_namespace(argv[2]);
	to = receiver(to);
	from = sender(from, argv[3], size, count);
	if (pthread_create(&thread, NULL, receive, &to))
		die("thread");
	began = now();
	end = began + (uint64_t)(strtod(argv[6], NULL) * SECOND);
	while (now() < end) {
		lost = wait_for_room(sent, lost);
		if (send(from, data, size * count, 0) == size * count)
			sent += size * count;
		else if (errno != ENOBUFS)
			die("send");
	}
	printf("%lu %lu %lu\n", atomic_load(&received), sent, now() - began);
	atomic_store(&done, true);
	pthread_join(thread, NULL);
	return 0;
}
