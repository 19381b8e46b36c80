// SPDX-License-Identifier: Apache-2.0
/*
 * Requests and their responses, as UDP packets with a number and a time in them.
 *
 * echo client ADDRESS PORT RATE SECONDS
 *	Send RATE requests a second, whether or not responses come.  Print how
 *	many were sent, then the ns of each response, from the moment at which
 *	its request was sent.
 * echo tap NAME [spin]
 *	Answer every request that leaves the TAP: what any responder behind a
 *	TAP needs at least.  Sleep until one comes, or look all the time.
 * echo udp PORT
 *	Answer every request that comes to this UDP port, as a program in a VM
 *	does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	SECOND = 1000000000,
	LATE = 250000000, /* ns in which the last responses may come */
	PAYLOAD = 64,
	PACKET = 2048,
	MAC = 6,
	TYPE = 12, /* offsets in an Ethernet frame */
	PROTOCOL = 23,
	ADDRESSES = 26,
	PORTS = 34,
	LEAST = 42
};

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

struct client {
	int fd;
	uint64_t began;
	double rate;
	uint64_t total; /* to be sent */
	uint64_t sent;
	uint64_t received;
	uint64_t *ns;
};

static uint64_t due(const struct client *c)
{
	return c->began + (uint64_t)(c->sent * (SECOND / c->rate));
}

static void send_due(struct client *c)
{
	uint64_t word[PAYLOAD / 8] = {0};

	while (c->sent < c->total && (word[0] = now()) >= due(c)) {
		/* A full queue loses it, as any other one on the way would. */
		if (send(c->fd, word, sizeof(word), MSG_DONTWAIT) < 0 &&
		    errno != EAGAIN && errno != ENOBUFS)
			die("send");
		c->sent++;
	}
}

static void receive_all(struct client *c)
{
	uint64_t word[PAYLOAD / 8];

	while (c->received < c->total &&
	       recv(c->fd, word, sizeof(word), MSG_DONTWAIT) == sizeof(word))
		c->ns[c->received++] = now() - word[0];
}

/* Sleep until a response is there, or the next request is due. */
static void sleep_until(const struct client *c, uint64_t until)
{
	struct pollfd fd = {.fd = c->fd, .events = POLLIN};
	uint64_t time = now();
	struct timespec t = {0};

	if (until > time)
		t.tv_nsec = until - time < SECOND ? until - time : SECOND - 1;
	ppoll(&fd, 1, &t, NULL);
}

static int client(char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct client c = {.rate = strtod(argv[2], NULL)};
	uint64_t end;

	c.total = c.rate * strtod(argv[3], NULL);
	c.ns = calloc(c.total + 1, sizeof(*c.ns));
	c.fd = socket(AF_INET, SOCK_DGRAM, 0);
	to.sin_port = htons(strtoul(argv[1], NULL, 10));
	if (!inet_aton(argv[0], &to.sin_addr) || c.fd < 0 || !c.ns ||
	    connect(c.fd, (void *)&to, sizeof(to)))
		die("socket");
	c.began = now();
	end = c.began + (uint64_t)(strtod(argv[3], NULL) * SECOND) + LATE;
	while (c.received < c.total && now() < end) {
		send_due(&c);
		receive_all(&c);
		sleep_until(&c, c.sent < c.total ? due(&c) : end);
		receive_all(&c);
	}
	printf("%lu", c.sent);
	for (uint64_t i = 0; i < c.received; i++)
		printf(" %lu", c.ns[i]);
	putchar('\n');
	return 0;
}

static int open_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
		die("TAP");
	return fd;
}

static void swap(uint8_t *a, uint8_t *b, size_t n)
{
	uint8_t t[MAC];

	memcpy(t, a, n);
	memcpy(a, b, n);
	memcpy(b, t, n);
}

/* The checksums stay right: they are sums of the same words. */
static void answer(int fd, uint8_t *p, ssize_t n)
{
	if (n < LEAST || p[TYPE] != 8 || p[TYPE + 1] || p[PROTOCOL] != 17)
		return;
	swap(p, p + MAC, MAC);
	swap(p + ADDRESSES, p + ADDRESSES + 4, 4);
	swap(p + PORTS, p + PORTS + 2, 2);
	if (write(fd, p, n) < 0 && errno != EAGAIN && errno != EIO)
		die("write");
}

static int tap(const char *name, int spin)
{
	uint8_t packet[PACKET];
	struct pollfd fd = {.fd = open_tap(name), .events = POLLIN};

	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = read(fd.fd, packet, sizeof(packet));

		if (n >= 0)
			answer(fd.fd, packet, n);
		else if (errno != EAGAIN && errno != EIO)
			die("read");
		else if (!spin || errno == EIO)
			poll(&fd, 1, errno == EIO ? 10 : -1);
	}
}

static int udp(const char *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	uint8_t packet[PACKET];
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	at.sin_port = htons(strtoul(port, NULL, 10));
	if (fd < 0 || bind(fd, (void *)&at, sizeof(at)))
		die("socket");
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct sockaddr_in from;
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, packet, sizeof(packet), 0,
				     (void *)&from, &size);

		/* A response that is lost is the client's to count. */
		if (n < 0 ||
		    (sendto(fd, packet, n, 0, (void *)&from, size) < 0 &&
		     errno != ENOBUFS))
			die("UDP");
	}
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "client"))
		return client(argv + 2);
	if (argc >= 3 && !strcmp(argv[1], "tap"))
		return tap(argv[2], argc == 4);
	if (argc == 3 && !strcmp(argv[1], "udp"))
		return udp(argv[2]);
	fputs("usage: echo client ADDRESS PORT RATE SECONDS | echo tap NAME "
	      "[spin] | echo udp PORT\n",
	      stderr);
	return 2;
}
