// SPDX-License-Identifier: Apache-2.0
/*
 * What the ring costs on top of the system call.
 *
 * A worker without a thread is stepped; only the steps are timed.  In between,
 * the "driver" offers chains and, for RX, a packet socket fills the TAP.  The
 * yardstick is the bare readv() or writev() of the same packets from and to
 * the same memory: one iovec each.
 *
 * tap_bench tx|rx TAP SIZE BUFFER ROUNDS
 *	TAP: the name of the one to make
 *	SIZE: of the packet; BUFFER: of each of the driver's
 * Prints, for each round: ns a packet through the ring, ns bare.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/ethernet.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "ring.h"

enum {
	NUM = 1024,
	BURST = 256, /* packets; a TAP's queue takes 500 */
	GUEST = 1 << 20,
	AVAIL = 16 * NUM,
	USED = AVAIL + 2 * NUM + 64,
	RING_BYTES = 64 << 10,
	MEMORY = 128 << 20,
	HDR = 12
};

struct bench {
	uint8_t *memory;
	uint32_t size, buffer;
	uint16_t avail_idx, next;
	int fd, source;
	bool rx;
	struct worker *worker;
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
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	int hdr = HDR, sock;

	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) ||
	    ioctl(fd, TUNSETVNETHDRSZ, &hdr) ||
	    ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
		die("TAP");
	sock = socket(AF_INET, SOCK_DGRAM, 0);
	ifr.ifr_mtu = 65521;
	if (ioctl(sock, SIOCSIFMTU, &ifr))
		die("MTU");
	ifr.ifr_flags = IFF_UP | IFF_NOARP;
	if (ioctl(sock, SIOCSIFFLAGS, &ifr))
		die("up");
	close(sock);
	return fd;
}

static int open_source(const char *name)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET,
				 .sll_protocol = htons(0x88b5)};
	int fd = socket(AF_PACKET, SOCK_RAW, htons(0x88b5));
	int size = 64 << 20, one = 1;

	to.sll_ifindex = if_nametoindex(name);
	if (fd < 0 || bind(fd, (void *)&to, sizeof(to)))
		die("packet socket");
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one));
	return fd;
}

static uint16_t load16(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)(const void *)p,
			       __ATOMIC_ACQUIRE);
}

static void put16(uint8_t *p, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELEASE);
}

/* Buffer i of the driver lies at its own place, as those of a real one do. */
static uint64_t buffer_at(const struct bench *b, uint16_t i)
{
	uint64_t stride = (b->buffer + 4095) & ~4095UL;

	return GUEST + RING_BYTES + i * stride;
}

static void offer(struct bench *b, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++, b->avail_idx++)
		put16(b->memory + AVAIL + 4 + 2 * (b->avail_idx % NUM),
		      b->avail_idx % NUM);
	put16(b->memory + AVAIL + 2, b->avail_idx);
	/* No interrupts, as a driver that polls. */
	put16(b->memory + AVAIL + 4 + 2 * NUM, b->avail_idx - 0x8000);
}

static void set_up(struct bench *b, struct worker_conf *conf)
{
	struct mem_region region = {GUEST, MEMORY, 0};
	struct ring_conf ring = {
		.desc = GUEST,
		.driver = GUEST + AVAIL,
		.device = GUEST + USED,
		.size = NUM,
		.flags = RING_EVENT_IDX | RING_INDIRECT | RING_MRG_RXBUF,
		.hdr_len = HDR,
		.max_packet = RING_MAX_PACKET,
		.kick_fd = -1,
		.call_fd = -1,
	};

	b->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	region.host_addr = (uintptr_t)b->memory;
	for (uint16_t i = 0; i < NUM; i++) {
		uint64_t addr = buffer_at(b, i);
		uint32_t word[2] = {b->rx ? b->buffer : HDR + b->size,
				    b->rx ? 2 : 0};

		memcpy(b->memory + 16 * i, &addr, 8);
		memcpy(b->memory + 16 * i + 8, word, 8);
	}
	if (worker_create(conf, &b->worker) ||
	    worker_set_memory(b->worker, &region, 1) ||
	    worker_start_ring(b->worker, b->rx ? RING_RX : RING_TX, &ring))
		die("worker");
}

static void feed(struct bench *b)
{
	static uint8_t packet[HDR + 65536] = {0xff, 0xff, 0xff, 0xff, 0xff,
					      0xff, 2,	  0,	0,    0,
					      0,    1,	  0x88, 0xb5};

	for (int i = 0; b->rx && i < BURST; i++)
		if (send(b->source, packet, b->size, 0) < 0)
			die("send");
}

/* How many of the driver's buffers a packet takes. */
static uint32_t buffers_of_packet(const struct bench *b)
{
	return b->rx ? (HDR + b->size + b->buffer - 1) / b->buffer : 1;
}

static uint64_t through_ring(struct bench *b)
{
	uint32_t buffers = buffers_of_packet(b);
	int left = BURST;
	uint64_t spent = 0, began;

	feed(b);
	/* The kernel may have sent a packet more: IPv6 finds its neighbours. */
	while (left > 0) {
		uint32_t used = load16(b->memory + USED + 2);
		uint32_t out = (uint16_t)(b->avail_idx - used);
		uint32_t want = b->rx ? NUM : left;
		int n;

		offer(b, want > out ? want - out : 0);
		began = now();
		n = worker_step(b->worker);
		spent += now() - began;
		left -= b->rx ? (uint16_t)(load16(b->memory + USED + 2) -
					   used) /
					buffers
			      : (uint32_t)n;
	}
	return spent;
}

static uint64_t bare(struct bench *b)
{
	uint64_t began;

	feed(b);
	began = now();
	for (int i = 0; i < BURST; i++, b->next += buffers_of_packet(b)) {
		struct iovec iov = {
			/* caches as cold as for the ring */
			b->memory + buffer_at(b, b->next % NUM) - GUEST,
			HDR + b->size,
		};
		ssize_t n = b->rx ? readv(b->fd, &iov, 1)
				  : writev(b->fd, &iov, 1);

		if (n < 0)
			die("bare");
	}
	return now() - began;
}

int main(int argc, char **argv)
{
	struct bench b = {0};
	struct worker_conf conf = {
		.events_fd = -1,
		.manual = 1,
		.io_uring = 1,
		.poll_min_ns = 50000,
		.poll_max_ns = 50000,
		.hold_ns = 1000000000,
	};

	if (argc != 6)
		return 2;
	b.rx = !strcmp(argv[1], "rx");
	b.size = strtoul(argv[3], NULL, 10);
	b.buffer = strtoul(argv[4], NULL, 10);
	b.fd = open_tap(argv[2]);
	b.source = b.rx ? open_source(argv[2]) : -1;
	conf.tap_fd = b.fd;
	set_up(&b, &conf);
	for (int i = strtol(argv[5], NULL, 10); i; i--) {
		uint64_t ring = through_ring(&b), plain = bare(&b);

		printf("%.1f %.1f\n", (double)ring / BURST,
		       (double)plain / BURST);
	}
	return worker_destroy(b.worker, 1000);
}
