// SPDX-License-Identifier: Apache-2.0
/* DPDK's side: rte_vhost_dequeue_burst() and rte_vhost_enqueue_burst(). */
#include <rte_mbuf.h>
#include <rte_vhost.h>
#include "side.h"

enum {
	DPDK_MBUFS = 1023, /* a power of two less one, as mempools like it */
	DPDK_CACHE = 256
};

static int dpdk_vid;
static bool dpdk_packed;
static uint16_t dpdk_queue; /* as VIRTIO numbers a pair's: 0 receives */
static struct rte_mempool *dpdk_pool;
static struct rte_mbuf *dpdk_source[SIDE_BURST];
static struct rte_mbuf *dpdk_taken[SIDE_BURST];
static unsigned int dpdk_n_taken;

static void dpdk_init(const struct side_setup *setup)
{
	dpdk_vid = setup->vid;
	dpdk_packed = setup->packed;
	dpdk_pool = rte_pktmbuf_pool_create("device", DPDK_MBUFS, DPDK_CACHE, 0,
					    RTE_MBUF_DEFAULT_BUF_SIZE, 0);
	if (!dpdk_pool ||
	    rte_pktmbuf_alloc_bulk(dpdk_pool, dpdk_source, SIDE_BURST))
		die("DPDK has no memory for the device's packets");
}

static void dpdk_begin(enum side_direction direction, uint16_t index,
		       uint32_t size)
{
	dpdk_queue = direction == SIDE_RX ? 0 : 1;
	if (rte_vhost_set_vring_base(dpdk_vid, dpdk_queue, index, index))
		die("DPDK's library does not take the ring");
	for (int i = 0; i < SIDE_BURST; i++) {
		dpdk_source[i]->data_len = size;
		dpdk_source[i]->pkt_len = size;
	}
}

static unsigned int dpdk_burst(void)
{
	if (dpdk_queue == 0)
		return rte_vhost_enqueue_burst(dpdk_vid, 0, dpdk_source,
					       SIDE_BURST);
	dpdk_n_taken = rte_vhost_dequeue_burst(dpdk_vid, 1, dpdk_pool,
					       dpdk_taken, SIDE_BURST);
	return dpdk_n_taken;
}

/* Not timed: what becomes of a packet is not the library's work. */
static void dpdk_behind(void)
{
	rte_pktmbuf_free_bulk(dpdk_taken, dpdk_n_taken);
	dpdk_n_taken = 0;
}

static uint16_t dpdk_end(void)
{
	uint16_t avail, used;

	if (rte_vhost_get_vring_base(dpdk_vid, dpdk_queue, &avail, &used))
		die("DPDK's library does not tell the ring's index");
	if (avail != used)
		die("DPDK's library has kept chains: avail %u, used %u", avail,
		    used);
	return used;
}

const struct side side_dpdk = {
	.name = "DPDK",
	.init = dpdk_init,
	.begin = dpdk_begin,
	.burst = dpdk_burst,
	.behind = dpdk_behind,
	.end = dpdk_end,
};
