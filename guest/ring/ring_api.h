/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that Python may call and see.  Both the compiler and cffi's cdef() read
 * this file, so it must have neither #include nor #if; C includes it through
 * ring.h.  The functions are documented at their definitions in worker.c and
 * calls.c and, for Python, in _ring.pyi.  The guards have guard_api.h.
 */

/* The rings of a queue pair, numbered as virtio-net numbers its queues. */
enum ring_index {
	RING_RX = 0, /* TAP to master: the master's receive queue */
	RING_TX = 1, /* master to TAP: the master's transmit queue */
	RING_COUNT = 2
};

/*
 * The metadata has the same numbers (docs/metadata.md, "Agent ring"): the agent
 * copies them.  test_ring_layout.py compares both.
 */
enum ring_state {
	RING_IDLE = 0, /* never started */
	RING_RUNNING = 1,
	RING_STOPPED = 2, /* by worker_stop_ring() */
	RING_BROKEN = 3, /* by the master, the TAP or an eventfd: see fault */
	RING_FENCED = 4 /* another back-end has the ring now: see fault */
};

enum ring_fault {
	RING_FAULT_NONE = 0,
	RING_FAULT_AVAIL_IDX = 1, /* avail idx is too far ahead, or went back */
	RING_FAULT_HEAD = 2, /* chain starts outside the descriptor table */
	RING_FAULT_NEXT = 3, /* chain goes on outside its table */
	RING_FAULT_LOOP = 4, /* chain longer than its table */
	RING_FAULT_PIECES = 5, /* chain of more pieces than a system call has */
	RING_FAULT_ADDRESS = 6, /* buffer or table outside the memory regions */
	RING_FAULT_DIRECTION = 7, /* a buffer to write in TX, to read in RX */
	RING_FAULT_INDIRECT = 8, /* INDIRECT: not negotiated, or with NEXT */
	RING_FAULT_INDIRECT_SIZE = 9, /* table's length is wrong */
	RING_FAULT_NESTED = 10, /* INDIRECT inside an indirect table */
	RING_FAULT_TAP = 11, /* the TAP is gone, or fails all the time */
	RING_FAULT_KICK = 12, /* the kick eventfd cannot be read: see error */
	RING_FAULT_USED_MOVED = 13, /* used idx is not what we wrote last */
	RING_FAULT_SESSION = 14, /* the daemon started another session */
	RING_FAULT_MEMORY = 15 /* the kernel cannot use the master's memory */
};

enum ring_flags {
	RING_EVENT_IDX = 1,
	RING_INDIRECT = 2,
	RING_MRG_RXBUF = 4,
	RING_IN_ORDER = 8,
	RING_PACKED = 16,
	RING_SEGMENT_UDP = 32 /* TX: the TAP does not know such packets */
};

/* A position in a packed ring is an index and, in this bit, a wrap counter. */
enum packed_position {
	PACKED_WRAP = 0x8000
};

enum ring_limits {
	RING_MAX_REGIONS = 512, /* QEMU has at most 512 memory slots */
	RING_MAX_SIZE = 32768,
	RING_MAX_PACKET = 65600, /* 65535, Ethernet and VLAN headers, slack */
	RING_BATCHES = 11 /* batch sizes counted apart: 1, 2-3, 4-7 ... 1024- */
};

/* A region of the master's guest-physical memory, and where we have it. */
struct mem_region {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t host_addr;
};

/* One ring's entry in the metadata, as the daemon writes it; little-endian. */
struct ring_meta {
	uint64_t session;
	uint32_t flags;
	uint32_t size;
	uint64_t desc;
	uint64_t driver;
	uint64_t device;
	uint32_t base;
	uint16_t kick_vector;
	uint16_t call_peer;
	uint16_t call_vector;
	uint16_t kick_peer;
	uint8_t reserved[4];
	uint64_t origin;
};

enum packed_undo {
	PACKED_UNDO = 1, /* as packed.c says */
	PACKED_NO_UNDO = 2 /* a chain of several descriptors, or with a table */
};

/* One packed ring's position in the metadata, as C writes it; little-endian. */
struct ring_position {
	uint64_t origin; /* that of the ring when this was written; 0: invalid */
	uint64_t desc; /* the ring that it is about, as the next three */
	uint64_t driver;
	uint64_t device;
	uint32_t size;
	uint32_t position; /* where it goes on | where after an update << 16 */
	uint64_t undo; /* enum packed_undo << 32 | length of its last buffer */
	uint8_t reserved[16];
};

struct worker_conf {
	int32_t tap_fd; /* one queue of the TAP, non-blocking */
	int32_t events_fd; /* eventfd: a ring broke or was fenced; -1 none */
	char name[16]; /* of the thread; ends with a 0 */
	uint32_t manual; /* no thread: the caller calls worker_step() */
	uint32_t io_uring; /* send by io_uring, if this machine lets us */
	uint32_t confine; /* leave the thread its own system calls only */
	uint64_t spin_ns; /* how long to look for work instead of sleeping */
	uint64_t poll_min_ns; /* first sleep without kicks, ... */
	uint64_t poll_max_ns; /* ... whose length doubles up to this */
	uint64_t hold_ns; /* how long a packet waits for buffers */
};

struct ring_conf {
	uint64_t desc; /* guest-physical, as are the next two */
	uint64_t driver;
	uint64_t device;
	uint32_t size;
	uint32_t base; /* index to start at; the used idx must equal it.  Of a
			* packed ring its position */
	uint32_t flags; /* enum ring_flags */
	uint32_t hdr_len; /* of the net header: 10 or 12 */
	uint32_t max_packet; /* longest packet without the net header */
	int32_t kick_fd; /* eventfd, or -1: poll */
	int32_t call_fd; /* eventfd or Unix socket, or -1 */
	uint32_t call_value; /* stored at call_addr: peer << 16 | vector */
	uint64_t call_addr; /* pointer to the doorbell register, or 0 */
	uint64_t meta_addr; /* pointer to the ring's struct ring_meta, or 0 */
	uint64_t session; /* the session number that must be there */
	uint64_t position_addr; /* packed: pointer to its struct ring_position, or 0 */
	uint64_t origin; /* packed: goes into it */
};

/* Counted from the worker's creation, over all its sessions. */
struct ring_stats {
	uint64_t packets;
	uint64_t bytes; /* without the net header */
	uint64_t kicks; /* wake-ups by the kick eventfd */
	uint64_t kicks_suppressed; /* passes that took chains without a kick */
	uint64_t polls; /* wake-ups by time, without a kick eventfd */
	uint64_t calls; /* interrupts sent to the master */
	uint64_t calls_suppressed; /* updates for which it wanted none */
	uint64_t used_updates; /* how often used idx was moved */
	uint64_t tap_full; /* TX: times it waited for room in the TAP */
	uint64_t no_buffers; /* RX: times it waited for the master's buffers */
	uint64_t spilled; /* RX: packets whose tail was copied */
	uint64_t bad_chains; /* RX: chains too short, given back unused */
	uint64_t segmented; /* TX: packets that were written as several */
	uint64_t drop_bad; /* TX: no header, or longer than max_packet */
	uint64_t drop_refused; /* TX: the TAP said EINVAL: bad header */
	uint64_t drop_memory; /* TX: no memory in the kernel, or EFAULT */
	uint64_t drop_down; /* TX: the TAP is down */
	uint64_t drop_other; /* TX: any other error of the TAP */
	uint64_t drop_read; /* RX: the TAP's packet could not be read */
	uint64_t drop_runt; /* RX: shorter than the net header */
	uint64_t drop_long; /* RX: longer than max_packet */
	uint64_t drop_no_room; /* RX: too long for the master's buffers */
	uint64_t drop_stop; /* RX: held for buffers when the ring stopped */
	uint64_t faults;
	uint64_t batches[RING_BATCHES]; /* updates by the log2 of their chains */
};

struct ring_status {
	uint32_t state; /* enum ring_state */
	uint32_t fault; /* enum ring_fault */
	int32_t error; /* errno that came with the fault, or 0 */
	uint32_t index; /* used idx or position: a successor starts there */
	int32_t io_uring; /* TX: 1: used; 0: not asked for; -errno: why it is not */
	struct ring_stats stats;
};

/* A copy of a packet, with its bytes behind this; see capture.c. */
struct capture_slot {
	uint64_t number; /* from 1 on; 0: there is none, or it is being made */
	uint64_t time_ns; /* CLOCK_REALTIME */
	uint32_t len; /* of the packet with its net header */
	uint32_t copied; /* bytes of it that are here */
	uint32_t ring; /* enum ring_index */
	uint32_t hdr_len; /* of the net header */
};

/* One ring whose back-end is not ours: see calls.c. */
struct calls_conf {
	int32_t call_fd; /* eventfd that the back-end signals, or -1 */
	int32_t out_fd; /* eventfd or Unix socket that it is passed on to, or -1 */
	uint64_t call_addr; /* pointer to the doorbell register, or 0 */
	uint32_t call_value; /* stored there: peer << 16 | vector */
	int32_t kick_fd; /* eventfd to signal as nothing else does, or -1 */
	uint64_t avail_idx_addr; /* pointer to the ring's avail idx, or 0 */
};

struct calls_stats {
	uint64_t calls; /* passed on to the master */
	uint64_t kicks; /* made for the back-end */
};

enum calls_limits {
	CALLS_MAX_RINGS = 64 /* as the metadata has */
};

struct calls;

int calls_create(const char *name, uint32_t confine, uint64_t poll_min_ns,
		 uint64_t poll_max_ns, struct calls **ret);
void calls_destroy(struct calls *c);
int calls_add(struct calls *c, uint32_t index, const struct calls_conf *conf);
void calls_remove(struct calls *c, uint32_t index);
int calls_read(struct calls *c, uint32_t index, struct calls_stats *ret);

struct worker;

int worker_create(const struct worker_conf *conf, struct worker **ret);
int worker_destroy(struct worker *w, uint32_t timeout_ms);
int worker_set_memory(struct worker *w, const struct mem_region *regions,
		      uint32_t n);
int worker_start_ring(struct worker *w, uint32_t index,
		      const struct ring_conf *conf);
int worker_stop_ring(struct worker *w, uint32_t index, uint32_t timeout_ms);
int worker_read_ring(struct worker *w, uint32_t index, struct ring_status *ret);
int worker_capture(struct worker *w, uint64_t addr, uint32_t n_slots,
		   uint32_t slot_size, uint32_t timeout_ms);
int worker_step(struct worker *w);
int uring_probe(void);
int confine_thread(void);
int confine_probe(void);
