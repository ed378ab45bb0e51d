// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What a worker allocates and frees by glibc's malloc and its like. Loaded only where that is counted.
 *
 * Set by uprobe_multi links, one a worker, at the entries of the functions: no address is kept, and no return is
 * probed. (Where call stacks are asked for, growth.bpf.c keeps some: on_native() here chooses the blocks.) A block's size when it is freed is in its header; when it is allocated it is what glibc makes of the size
 * asked for. Where glibc splits a chunk and less than 32 bytes would be left, the block is 16 bytes larger than that:
 * so the sum of allocations is up to 16 bytes a block too small, and never too large.
 */
#include <uapi/linux/ptrace.h>
#include "request_events.h"
#include "growth_events.h"
#include "arch.h"
#include "common.h"
#include "read.h"

/* Those of request.bpf.c: the loader puts its map in the place of this one. */
BPF_HASH(native_books, u32, struct native_book, WORKERS_MAX);
BPF_HASH(workers, u32, struct worker, WORKERS_MAX);
/* Those of growth.bpf.c, where blocks are sampled. */
BPF_ARRAY(block_config, struct block_config, 1);
BPF_HASH(allocating, u64, u64, ALLOCATING_MAX);
BPF_HASH(held_blocks, struct block_key, struct block, BLOCKS_MAX);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

/* malloc/malloc.c, glibc 2.31 to 2.43 */
#define HEADER 8
#define CHUNK_ALIGNMENT 16
#define CHUNK_MIN 32
#define FLAG_BITS 7
#define IS_MMAPPED 2
#define MMAPPED_HEADER 16
#define PAGE 4096
/* DEFAULT_MMAP_THRESHOLD; it only ever grows. A little below, since memalign asks for more than it was asked for. */
#define LARGE (128 * 1024 - 64)
/* No block is larger: PTRDIFF_MAX. What asks for more gets nothing. */
#define BLOCK_MAX (1ULL << 47)

static __always_inline struct native_book *this_book(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	return native_books.lookup(&pid);
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

/*
 * Counts down to the next sample, and hands a block that is sampled over to the return of this call. The gaps have no
 * memory, so that a new one may begin behind each sampled block. Threads share the countdown without a lock: what
 * they count at the same time may count once.
 */
static __always_inline void sample(struct native_book *b, u64 bytes)
{
	u64 thread = bpf_get_current_pid_tgid();
	s64 gap = b->gap;

	if (!gap)
		return;
	if (gap > bytes) {
		b->gap = gap - bytes;
		return;
	}
	b->gap = next_gap();
	allocating.update(&thread, &bytes);
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
		held_blocks.update(&outlived, block);
	}
	held_blocks.delete(&key);
}

static __always_inline void allocated(struct native_book *b, u64 bytes)
{
	b->large = 0;
	if (bytes >= BLOCK_MAX)
		return;
	sample(b, chunk(bytes));
	add(&b->alloc_bytes, chunk(bytes));
	add(&b->alloc_calls, 1);
	if (bytes >= LARGE)
		b->large = chunk(bytes);
}

static __always_inline void freed(struct native_book *b, u64 header)
{
	u64 size = header & ~(u64)FLAG_BITS;

	if (size >= BLOCK_MAX)
		return;
	b->large = 0;
	add(&b->free_bytes, size);
	add(&b->free_calls, 1);
	if (header & IS_MMAPPED)
		add(&b->mapped_bytes, -(s64)size);
}

static __always_inline void reallocated(struct native_book *b, u64 block, u64 bytes)
{
	u64 header = header_of(block), size;

	forget(b, block);
	freed(b, header);
	if (header & IS_MMAPPED && bytes >= LARGE && bytes < BLOCK_MAX) {
		/* mremap_chunk(): it stays a mapping. */
		size = (bytes + MMAPPED_HEADER + PAGE - 1) & ~(u64)(PAGE - 1);
		sample(b, size);
		add(&b->alloc_bytes, size);
		add(&b->alloc_calls, 1);
		add(&b->mapped_bytes, size);
		return;
	}
	allocated(b, bytes);
}

/* A block of its own: sysmalloc_mmap() maps whole pages for a chunk that is large. */
static __always_inline void mapped(struct native_book *b, u64 result, u64 length)
{
	u64 wanted = b->large;

	if (!wanted || failed(result) || length < wanted || length > wanted + PAGE)
		return;
	b->large = 0;
	add(&b->alloc_bytes, length - wanted);
	add(&b->mapped_bytes, length);
}

int on_native(struct pt_regs *ctx)
{
	struct native_book *b = this_book();
	u64 one = PT_REGS_PARM1(ctx), two = PT_REGS_PARM2(ctx);

	if (!b)
		return 0;
	switch (bpf_get_attach_cookie(ctx)) {
	case NATIVE_MALLOC:
		allocated(b, one);
		break;
	case NATIVE_FREE:
		if (one) {
			forget(b, one);
			freed(b, header_of(one));
		}
		break;
	case NATIVE_CALLOC:
		if (!two || one < BLOCK_MAX / two)
			allocated(b, one * two);
		break;
	case NATIVE_REALLOC:
		/* Of no block it is malloc(), to no bytes it is free(): they call those. */
		if (one && two)
			reallocated(b, one, two);
		break;
	case NATIVE_MEMALIGN:
		/* With less alignment than every block has, it calls malloc(). */
		if (one > CHUNK_ALIGNMENT)
			allocated(b, two);
		break;
	case NATIVE_MMAP:
		mapped(b, PT_REGS_RC(ctx), two);
		break;
	}
	return 0;
}
