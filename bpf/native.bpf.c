// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What a worker allocates and frees by glibc's malloc and its like. Loaded only where that is counted.
 *
 * Set by uprobe_multi links, a pair for each worker. A block's size is in its header: it is read where an allocation
 * returns, and where a block is freed: the sums are exact. Which request allocated a block is remembered until it is
 * freed: so what a request leaves behind is known, and what a later request frees of it. Where call stacks are asked
 * for, some blocks are chosen here, whose stacks growth.bpf.c takes when they are returned.
 */
#include <uapi/linux/ptrace.h>
#include "request_events.h"
#include "growth_events.h"
#include "arch.h"
#include "common.h"
#include "read.h"

/* The maps of request.bpf.c: the loader puts them in the place of these. */
BPF_HASH(native_books, u32, struct native_book, WORKERS_MAX);
BPF_ARRAY(owners_noted, u64, 1);
BPF_ARRAY(lost, u64, LOST_KINDS);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_HASH(workers, u32, struct worker, WORKERS_MAX);
BPF_ARRAY(kernel_layout, struct kernel, 1);
/* The maps of growth.bpf.c, where blocks are sampled. */
BPF_ARRAY(lost_stacks, u64, LOST_STACK_KINDS);
BPF_ARRAY(block_config, struct block_config, 1);
BPF_HASH(allocating, u64, u64, ALLOCATING_MAX);
BPF_HASH(held_blocks, struct block_key, struct block, BLOCKS_MAX);

struct owned_block {
	u64 address;
	u64 pid;
};

struct owner {
	u64 request; /* its started_ns; 0 = it was allocated between requests */
	u64 header; /* of the block: it can be read where it is allocated, and where it is freed mostly */
};

/* Which request allocated a block. The kernel forgets the oldest: what those hold, they hold for good. */
BPF_TABLE("lru_hash", struct owned_block, struct owner, native_owners, OWNED_MAX);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

/* malloc/malloc.c, glibc 2.31 to 2.43 */
#define HEADER 8
#define CHUNK_ALIGNMENT 16
#define CHUNK_MIN 32
#define FLAG_BITS 7
#define IS_MMAPPED 2
#define NON_MAIN_ARENA 4
/* No block is larger: PTRDIFF_MAX. */
#define BLOCK_MAX (1ULL << 47)

static __always_inline struct native_book *this_book(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	return native_books.lookup(&pid);
}

static __always_inline bool runs_requests(struct native_book *b)
{
	return b->thread == (u32)bpf_get_current_pid_tgid();
}

/*
 * True if what this thread allocates is the running request's: it runs the request, or was started in it. What older
 * threads allocate is nobody's.
 */
static __always_inline bool is_the_requests(struct native_book *b)
{
	u32 zero = 0;
	struct kernel *k;

	if (runs_requests(b))
		return true;
	k = kernel_layout.lookup(&zero);
	return k && b->request &&
	       kernel_u64(bpf_get_current_task() + k->task_start_time) >= b->request;
}

static __always_inline u64 chunk(u64 bytes)
{
	u64 size = (bytes + HEADER + CHUNK_ALIGNMENT - 1) & ~(u64)(CHUNK_ALIGNMENT - 1);

	return size < CHUNK_MIN ? CHUNK_MIN : size;
}

static __always_inline u64 header_of(u64 block)
{
	return user_u64(block - HEADER);
}

static __always_inline void add(s64 *sum, s64 value)
{
	__sync_fetch_and_add(sum, value);
}

static __always_inline u64 size_of(u64 header)
{
	return header & ~(u64)FLAG_BITS;
}

/* An arena may grow while a request runs that has nothing to do with it. */
static __always_inline void note_arena(struct native_book *b, u64 header, s64 sign)
{
	s64 size = size_of(header);

	if (header & NON_MAIN_ARENA && size < BLOCK_MAX)
		add(&b->sums.arena_bytes, sign * size);
}

static __always_inline void count_mappings(struct native_sums *sums, u64 header, s64 sign)
{
	s64 size = size_of(header);

	if (header & IS_MMAPPED)
		add(&sums->mapped_bytes, sign * size);
	else if (header & NON_MAIN_ARENA)
		add(&sums->arena_bytes, sign * size);
}

static __always_inline void count(struct native_sums *sums, u64 header, s64 sign)
{
	s64 size = size_of(header);

	add(sign > 0 ? &sums->alloc_bytes : &sums->free_bytes, size);
	add(sign > 0 ? &sums->alloc_calls : &sums->free_calls, 1);
	count_mappings(sums, header, sign);
}

/* Bytes until the next sample: -mean * ln(random), from its quantiles, and between two of them in proportion. */
static __always_inline s64 next_gap(void)
{
	u32 zero = 0, random = bpf_get_prandom_u32(), step = random & (GAP_STEPS - 1);
	struct block_config *config = block_config.lookup(&zero);
	u64 high, low;

	if (!config)
		return 1;
	high = config->gaps[step];
	low = config->gaps[step + 1];
	return 1 + high - ((high - low) * (random >> 20) >> 12);
}

static __always_inline void count_lost_block(void)
{
	u32 what = LOST_BLOCKS;
	u64 *n = lost_stacks.lookup(&what);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/*
 * Counts down to the next sample, and hands a block that is sampled over to the return of this call. The gaps have no
 * memory, so that a new one may begin behind each sampled block.
 */
static __always_inline void sample(struct native_book *b, u64 bytes)
{
	u64 thread = bpf_get_current_pid_tgid();
	s64 gap = b->gap;

	if (!gap || bytes >= BLOCK_MAX)
		return;
	bytes = chunk(bytes);
	if (gap > bytes) {
		b->gap = gap - bytes;
		return;
	}
	b->gap = next_gap();
	if (allocating.update(&thread, &bytes))
		count_lost_block();
}

/* Forgets a block that is freed. If it lived long enough, it was retained, and user space comes for it. */
static __always_inline void forget(struct native_book *b, u64 address)
{
	struct block_key key = {.address = address, .pid = bpf_get_current_pid_tgid() >> 32};
	struct block_key outlived = key;
	struct block_config *config;
	struct worker *w;
	struct block *block;
	u32 zero = 0;

	if (!b->gap)
		return;
	block = held_blocks.lookup(&key);
	if (!block)
		return;
	w = workers.lookup(&key.pid);
	config = block_config.lookup(&zero);
	if (w && config && block->nth + config->retained_after + w->in_request <= w->requests) {
		outlived.outlived = block->nth;
		if (held_blocks.update(&outlived, block))
			count_lost_block();
	}
	held_blocks.delete(&key);
}

static __always_inline void count_lost(u32 what)
{
	u64 *n = lost.lookup(&what);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Sends what was freed last of the blocks of one earlier request, and in one way, if there is anything. */
static __always_inline void send_release(struct native_book *b, u32 pid)
{
	struct release_event event = {
		.kind = EVENT_RELEASED,
		.pid = pid,
		.owner_started_ns = b->released_owner,
		.freed_by_started_ns = b->request,
		.bytes = b->released_bytes,
		.blocks = b->released_blocks,
		.idle = !b->request,
		.resized = b->released_resized,
	};

	if (!event.blocks)
		return;
	b->released_blocks = 0;
	b->released_bytes = 0;
	if (events.ringbuf_output(&event, sizeof(event), NO_WAKEUP))
		count_lost(LOST_RELEASES);
}

static __always_inline void allocated(struct native_book *b, u64 block)
{
	struct owned_block key = {.address = block, .pid = bpf_get_current_pid_tgid() >> 32};
	struct owner owner = {.request = b->request, .header = header_of(block)}, *known;
	u32 zero = 0;
	u64 *noted;

	if (size_of(owner.header) >= BLOCK_MAX)
		return;
	if (!runs_requests(b)) {
		/* Counted, where a function that has returned it to this one was probed, too. */
		known = native_owners.lookup(&key);
		if (known && known->request == owner.request)
			return;
	}
	count(&b->sums, owner.header, 1);
	if (!owner.request)
		add(&b->sums.between_bytes, size_of(owner.header));
	native_owners.update(&key, &owner);
	noted = owners_noted.lookup(&zero);
	if (noted)
		__sync_fetch_and_add(noted, 1);
}

/*
 * True if the owner of a block may have been forgotten in the request that runs: the kernel looks for the oldest in
 * the older half of the table, kernel/bpf/bpf_lru_list.c.
 */
static __always_inline bool may_be_forgotten(struct native_book *b)
{
	u32 zero = 0;
	u64 *noted = owners_noted.lookup(&zero);

	return !noted || *noted - b->owners_before >= OWNED_MAX / 2;
}

/* A block with that header is freed; 0 = it cannot be read, for its page is not in memory. `resized`: by realloc(). */
static __always_inline void freed(struct native_book *b, u64 block, u64 header, u64 resized)
{
	struct owned_block key = {.address = block, .pid = bpf_get_current_pid_tgid() >> 32};
	struct owner *found = native_owners.lookup(&key);
	u64 owner = 0, size;

	if (found) {
		owner = found->request;
		if (!header)
			header = found->header;
		native_owners.delete(&key);
	} else if (!is_the_requests(b)) {
		note_arena(b, header, -1);
		return;
	} else {
		/* Between requests it is the same who had it: only its size is counted. */
		if (!header || (b->request && may_be_forgotten(b)))
			add(&b->sums.unsure, 1);
	}
	size = size_of(header);
	if (!size || size >= BLOCK_MAX)
		return;
	if (!b->request || (found && !owner))
		add(&b->sums.between_bytes, -(s64)size);
	if (found && !owner) {
		/* The parameters of a request, mostly: what reads them allocates them before the request begins. */
		count_mappings(&b->sums, header, -1);
		return;
	}
	count(&b->sums, header, -1);
	if (owner && owner == b->request)
		return;
	add(&b->sums.freed_earlier, size);
	if (header & NON_MAIN_ARENA)
		add(&b->sums.arena_freed_earlier, size);
	if (owner < b->since_ns) {
		if (!resized)
			return;
		owner = 0;
	}
	if (owner != b->released_owner || resized != b->released_resized)
		send_release(b, key.pid);
	b->released_owner = owner;
	b->released_resized = resized;
	b->released_bytes += size;
	b->released_blocks++;
}

/* At the entry of free(), realloc() and the core of memalign(); where blocks are sampled, of all that allocate. */
int on_native(struct pt_regs *ctx)
{
	struct native_book *b = this_book();
	u64 one = PT_REGS_PARM1(ctx), two = PT_REGS_PARM2(ctx), site = bpf_get_attach_cookie(ctx);

	if (!b)
		return 0;
	b->hits++;
	if (site == NATIVE_FREE && one) {
		forget(b, one);
		freed(b, one, header_of(one), 0);
		return 0;
	}
	/*
	 * Only the request's own thread remembers a realloc() until it returns. In other threads it is
	 * assumed to succeed.
	 */
	if (site == NATIVE_REALLOC && one && two && !runs_requests(b)) {
		forget(b, one);
		freed(b, one, header_of(one), 1);
	}
	if (!is_the_requests(b))
		return 0;
	switch (site) {
	case NATIVE_MALLOC:
		sample(b, one);
		break;
	case NATIVE_CALLOC:
		if (!two || one < BLOCK_MAX / two)
			sample(b, one * two);
		break;
	case NATIVE_REALLOC:
		/* Of no block it is malloc(), to no bytes it is free(): they call those. */
		if (!one || !two)
			break;
		sample(b, two);
		if (!runs_requests(b))
			break;
		b->resized_block = one;
		b->resized_header = header_of(one);
		b->resizing = 1;
		forget(b, one);
		break;
	case NATIVE_MEMALIGN:
		/* With less alignment than every block has, it calls malloc(). */
		if (one <= CHUNK_ALIGNMENT)
			break;
		sample(b, two);
		if (runs_requests(b))
			b->aligning = 1;
		break;
	}
	return 0;
}

/* Where malloc() and its like return a block, whose header has its size. */
int on_native_return(struct pt_regs *ctx)
{
	struct native_book *b = this_book();
	u64 block = PT_REGS_RC(ctx);

	if (!b)
		return 0;
	b->hits++;
	if (!runs_requests(b)) {
		if (block && is_the_requests(b))
			allocated(b, block);
		else if (block)
			note_arena(b, header_of(block), 1);
		return 0;
	}
	switch (bpf_get_attach_cookie(ctx)) {
	case NATIVE_MALLOC:
		/* Of realloc(), whose own return follows. */
		if (b->resizing)
			return 0;
		break;
	case NATIVE_REALLOC:
		if (!b->resizing)
			return 0;
		b->resizing = 0;
		/* Without memory the old block stays as it is. */
		if (block)
			freed(b, b->resized_block, b->resized_header, 1);
		break;
	case NATIVE_MEMALIGN:
		if (!b->aligning)
			return 0;
		b->aligning = 0;
		break;
	}
	if (block)
		allocated(b, block);
	return 0;
}
