// SPDX-License-Identifier: Apache-2.0
/*
 * What a device's side of a ring costs a packet: ours beside DPDK's.
 *
 * The driver is DPDK's own ("virtio-user"), in this process, on the other core.
 * It is connected to DPDK's vhost library, in this process too, by a vhost-user
 * socket.  The library says where the driver's memory and rings lie; then the
 * two sides take turns with the same ring.  So the driver, its memory and its
 * way to use the ring are the same for both.
 *
 * Driver and device take turns too, a burst each: the device finds a burst that
 * another core has just written.  Only the device's burst is timed, by the TSC.
 * So it does not matter when the driver, or the time between two bursts, is
 * held up by other programs.
 *
 * bench EAL... -- SOCKET DRIVER RUNS BURSTS
 *	DRIVER: the driver's settings, such as "mrg_rxbuf=1,in_order=0"
 * Prints "hz N", "version TEXT", "line TICKS...": what a cache line takes from one
 * core to the other and back, and for each run and side "tx|rx
 * SIZE NAME TICKS...": the TSC's ticks of each burst of SIDE_BURST packets.
 */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <rte_bus_vdev.h>
#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_pause.h>
#include <rte_version.h>
#include <rte_vhost.h>
#include "side.h"

enum {
	BENCH_DRIVER_CORE = 1,
	BENCH_LINES = 1001,
	BENCH_WARM_UP = 64, /* bursts: the ring is used from end to end */
	BENCH_SPINS = 1000,
	BENCH_WAIT_S = 10,
	BENCH_MBUFS = 4095,
	BENCH_LINE = 64,
	BENCH_F_MERGEABLE = 15, /* bits of the features: VIRTIO */
	BENCH_F_INDIRECT = 28,
	BENCH_F_PACKED = 34,
	BENCH_F_IN_ORDER = 35
};

/* Whose turn it is. */
enum bench_turn {
	BENCH_DEVICE,
	BENCH_DRIVER,
	BENCH_END
};

static const uint32_t bench_sizes[] = {64, 1500};
static const struct side *const bench_sides[] = {&side_ours, &side_dpdk};

static int bench_vid = -1; /* written by the library's thread */
static uint64_t bench_features;
static struct side_setup bench_setup;
static uint16_t bench_port;
static struct rte_mempool *bench_pool;
static enum side_direction bench_direction;
static uint32_t bench_size;
static unsigned int bench_received;
static uint32_t bench_turn __attribute__((aligned(BENCH_LINE)));

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* Only one side runs at a time, so a lost processor costs time, not truth. */
static enum bench_turn bench_wait(enum bench_turn not_this)
{
	enum bench_turn turn;

	for (unsigned int i = 1;; i++) {
		turn = __atomic_load_n(&bench_turn, __ATOMIC_ACQUIRE);
		if (turn != not_this)
			return turn;
		rte_pause();
		if (!(i % BENCH_SPINS))
			sched_yield();
	}
}

static void bench_give(enum bench_turn turn)
{
	__atomic_store_n(&bench_turn, turn, __ATOMIC_RELEASE);
}

/* Send a burst of packets, each written here and now. */
static void bench_send(void)
{
	struct rte_mbuf *packet[SIDE_BURST];
	uint16_t sent = 0;

	if (rte_pktmbuf_alloc_bulk(bench_pool, packet, SIDE_BURST))
		die("the driver has no packets left");
	for (int i = 0; i < SIDE_BURST; i++) {
		packet[i]->data_len = bench_size;
		packet[i]->pkt_len = bench_size;
		memset(rte_pktmbuf_mtod(packet[i], void *), i, bench_size);
	}
	for (int i = 0; i < BENCH_SPINS && sent < SIDE_BURST; i++)
		sent += rte_eth_tx_burst(bench_port, 0, packet + sent,
					 SIDE_BURST - sent);
	if (sent < SIDE_BURST)
		die("the ring is full: the driver sent %u of a burst", sent);
}

/* Receive what is there, read it, and give the driver new buffers. */
static void bench_receive(void)
{
	struct rte_mbuf *packet[SIDE_BURST];
	static volatile uint8_t seen;
	uint16_t n;

	do {
		n = rte_eth_rx_burst(bench_port, 0, packet, SIDE_BURST);
		for (uint16_t i = 0; i < n; i++) {
			const uint8_t *data =
				rte_pktmbuf_mtod(packet[i], uint8_t *);

			if (packet[i]->data_len != bench_size)
				die("the driver received %u bytes of %u",
				    packet[i]->data_len, bench_size);
			for (uint32_t at = 0; at < bench_size; at += BENCH_LINE)
				seen = data[at];
		}
		rte_pktmbuf_free_bulk(packet, n);
		bench_received += n;
	} while (n);
	(void)seen;
}

static int bench_driver(void *arg)
{
	(void)arg;
	while (bench_wait(BENCH_DEVICE) != BENCH_END) {
		if (bench_direction == SIDE_TX)
			bench_send();
		else if (bench_direction == SIDE_RX)
			bench_receive();
		bench_give(BENCH_DEVICE);
	}
	return 0;
}

/* Let one side handle a burst; return the time that it took. */
static uint64_t bench_burst(const struct side *side)
{
	uint64_t began, ended;
	unsigned int n;

	bench_wait(BENCH_DRIVER);
	began = rte_rdtsc_precise();
	n = side->burst();
	ended = rte_rdtsc_precise();
	if (n != SIDE_BURST)
		die("%s handled %u packets of %u", side->name, n, SIDE_BURST);
	side->behind();
	return ended - began;
}

static void bench_run(const struct side *side, unsigned int bursts,
		      uint16_t *index)
{
	printf("%s %u %s", bench_direction == SIDE_TX ? "tx" : "rx", bench_size,
	       side->name);
	side->begin(bench_direction, *index, bench_size);
	for (unsigned int i = 0; i < BENCH_WARM_UP + bursts; i++) {
		uint64_t ticks;

		if (bench_direction == SIDE_TX)
			bench_give(BENCH_DRIVER);
		ticks = bench_burst(side);
		if (bench_direction == SIDE_RX)
			bench_give(BENCH_DRIVER);
		if (i >= BENCH_WARM_UP)
			printf(" %lu", ticks);
	}
	bench_wait(BENCH_DRIVER);
	*index = side->end();
	putchar('\n');
}

/*
 * How far the two cores are from each other explains much of what a packet
 * takes, and differs from machine to machine, and from hour to hour on a
 * virtual one.
 */
static void bench_lines(void)
{
	bench_direction = SIDE_DIRECTIONS; /* the driver does nothing */
	printf("line");
	for (int i = 0; i < BENCH_LINES; i++) {
		uint64_t began = rte_rdtsc_precise();

		bench_give(BENCH_DRIVER);
		bench_wait(BENCH_DRIVER);
		printf(" %lu", rte_rdtsc_precise() - began);
	}
	putchar('\n');
}

/* Every other run begins with the other side. */
static void bench_all(unsigned int runs, unsigned int bursts)
{
	/* A packed ring starts at 0 with its wrap counter, bit 15, at 1. */
	uint16_t first = bench_setup.packed ? 0x8000 : 0;
	uint16_t index[SIDE_DIRECTIONS] = {first, first};

	for (unsigned int run = 0; run < runs; run++)
		for (int d = 0; d < SIDE_DIRECTIONS; d++)
			for (int s = 0; s < 2; s++)
				for (unsigned int k = 0; k < 2; k++) {
					bench_direction = d;
					bench_size = bench_sizes[s];
					bench_run(bench_sides[(run + k) % 2],
						  bursts, &index[d]);
				}
}

static int bench_new_device(int vid)
{
	__atomic_store_n(&bench_vid, vid, __ATOMIC_RELEASE);
	return 0;
}

static void bench_destroy_device(int vid)
{
	(void)vid;
}

static const struct rte_vhost_device_ops bench_ops = {
	.new_device = bench_new_device,
	.destroy_device = bench_destroy_device,
};

static void bench_listen(const char *socket)
{
	if (rte_vhost_driver_register(socket,
				      RTE_VHOST_USER_NET_COMPLIANT_OL_FLAGS) ||
	    rte_vhost_driver_callback_register(socket, &bench_ops) ||
	    rte_vhost_driver_start(socket))
		die("DPDK's vhost library cannot listen on %s", socket);
}

static void bench_start_driver(const char *socket, const char *settings)
{
	struct rte_eth_conf conf = {0};
	char args[512];

	snprintf(args, sizeof(args), "path=%s,queues=1,%s", socket, settings);
	bench_pool = rte_pktmbuf_pool_create("driver", BENCH_MBUFS, 256, 0,
					     RTE_MBUF_DEFAULT_BUF_SIZE, 0);
	if (!bench_pool)
		die("DPDK has no memory for the driver's packets");
	if (rte_vdev_init("net_virtio_user0", args) ||
	    rte_eth_dev_get_port_by_name("net_virtio_user0", &bench_port))
		die("DPDK has no virtio-user card with %s", args);
	if (rte_eth_dev_configure(bench_port, 1, 1, &conf) ||
	    rte_eth_rx_queue_setup(bench_port, 0, 0, 0, NULL, bench_pool) ||
	    rte_eth_tx_queue_setup(bench_port, 0, 0, 0, NULL) ||
	    rte_eth_dev_start(bench_port))
		die("DPDK's driver does not start with %s", args);
}

static void bench_wait_device(void)
{
	uint64_t end = rte_rdtsc() + BENCH_WAIT_S * rte_get_tsc_hz();

	while (__atomic_load_n(&bench_vid, __ATOMIC_ACQUIRE) < 0) {
		if (rte_rdtsc() > end)
			die("the driver has not started its rings within %u s",
			    BENCH_WAIT_S);
		sched_yield();
	}
}

static uint64_t bench_guest(const void *host)
{
	const struct side_setup *s = &bench_setup;

	for (uint32_t i = 0; i < s->n_regions; i++) {
		uint64_t offset = (uintptr_t)host - s->region[i].host;

		if (offset < s->region[i].size)
			return s->region[i].guest + offset;
	}
	die("a ring lies outside the driver's memory");
}

static void bench_find_memory(void)
{
	struct rte_vhost_memory *memory;

	if (rte_vhost_get_mem_table(bench_vid, &memory))
		die("DPDK's library does not tell the driver's memory");
	bench_setup.n_regions = memory->nregions;
	if (memory->nregions > RTE_DIM(bench_setup.region))
		die("the driver's memory has too many regions");
	for (uint32_t i = 0; i < memory->nregions; i++) {
		const struct rte_vhost_mem_region *r = &memory->regions[i];

		bench_setup.region[i].guest = r->guest_phys_addr;
		bench_setup.region[i].size = r->size;
		bench_setup.region[i].host = r->host_user_addr;
	}
	free(memory);
}

static void bench_find_rings(void)
{
	for (uint16_t i = 0; i < SIDE_DIRECTIONS; i++) {
		struct side_ring *ring = &bench_setup.ring[i];
		struct rte_vhost_vring vring;

		if (rte_vhost_get_vhost_vring(bench_vid, i, &vring) ||
		    rte_vhost_enable_guest_notification(bench_vid, i, 0))
			die("DPDK's library has no ring %u", i);
		ring->desc = bench_guest(vring.desc);
		ring->driver = bench_guest(vring.avail);
		ring->device = bench_guest(vring.used);
		ring->size = vring.size;
	}
}

static bool bench_has(unsigned int feature)
{
	return bench_features >> feature & 1;
}

static void bench_find_setup(void)
{
	if (rte_vhost_get_negotiated_features(bench_vid, &bench_features))
		die("DPDK's library does not tell the features");
	bench_setup.vid = bench_vid;
	bench_setup.packed = bench_has(BENCH_F_PACKED);
	bench_setup.mergeable = bench_has(BENCH_F_MERGEABLE);
	bench_setup.in_order = bench_has(BENCH_F_IN_ORDER);
	bench_setup.indirect = bench_has(BENCH_F_INDIRECT);
	bench_find_memory();
	bench_find_rings();
	for (int i = 0; i < 2; i++)
		bench_sides[i]->init(&bench_setup);
	printf("hz %lu\nversion %s\n", rte_get_tsc_hz(), rte_version());
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);

	argc -= used;
	argv += used;
	if (used < 0 || argc != 5)
		die("usage: bench EAL... -- SOCKET DRIVER RUNS BURSTS");
	bench_listen(argv[1]);
	bench_start_driver(argv[1], argv[2]);
	bench_wait_device();
	bench_find_setup();
	if (rte_eal_remote_launch(bench_driver, NULL, BENCH_DRIVER_CORE))
		die("the driver's core does not start");
	bench_lines();
	bench_all(strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
	bench_give(BENCH_END);
	rte_eal_wait_lcore(BENCH_DRIVER_CORE);
	fflush(stdout);
	/* Neither side has anything to tidy up but memory. */
	_exit(0);
}
