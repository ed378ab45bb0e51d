// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What a worker allocates and frees by glibc's malloc and its like. Loaded only where that is counted.
 *
 * Set by uprobe_multi links, a pair for each worker. A block's size is in its header: it is read where an allocation
 * returns, and where a block is freed. So no address is kept, and the difference is exact.
 */
#include <uapi/linux/ptrace.h>
#include "request_events.h"
#include "arch.h"
#include "common.h"
#include "read.h"

/* Those of request.bpf.c: the loader puts its map in the place of this one. */
BPF_HASH(native_books, u32, struct native_book, WORKERS_MAX);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

/* malloc/malloc.c, glibc 2.31 to 2.43 */
#define HEADER 8
#define CHUNK_ALIGNMENT 16
#define FLAG_BITS 7
#define IS_MMAPPED 2
/* No block is larger: PTRDIFF_MAX. */
#define BLOCK_MAX (1ULL << 47)

static __always_inline struct native_book *this_book(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	return native_books.lookup(&pid);
}

static __always_inline u32 this_thread(void)
{
	return bpf_get_current_pid_tgid();
}

static __always_inline u64 header_of(u64 block)
{
	return user_u64(block - HEADER);
}

static __always_inline void add(s64 *sum, s64 value)
{
	__sync_fetch_and_add(sum, value);
}

static __always_inline void count(struct native_book *b, u64 header, s64 sign)
{
	s64 size = header & ~(u64)FLAG_BITS;

	if (size >= BLOCK_MAX)
		return;
	add(sign > 0 ? &b->alloc_bytes : &b->free_bytes, size);
	add(sign > 0 ? &b->alloc_calls : &b->free_calls, 1);
	if (header & IS_MMAPPED)
		add(&b->mapped_bytes, sign * size);
}

/* At the entry of free(), realloc() and the core of memalign(), with their arguments. */
int on_native(struct pt_regs *ctx)
{
	struct native_book *b = this_book();
	u64 one = PT_REGS_PARM1(ctx), two = PT_REGS_PARM2(ctx);

	if (!b)
		return 0;
	switch (bpf_get_attach_cookie(ctx)) {
	case NATIVE_FREE:
		if (one)
			count(b, header_of(one), -1);
		break;
	case NATIVE_REALLOC:
		/* Of no block it is malloc(), to no bytes it is free(): they call those. */
		if (one && two) {
			b->resized = header_of(one);
			b->resizing_thread = this_thread();
		}
		break;
	case NATIVE_MEMALIGN:
		/* With less alignment than every block has, it calls malloc(). */
		if (one > CHUNK_ALIGNMENT)
			b->aligning_thread = this_thread();
		break;
	}
	return 0;
}

/* Where malloc() and its like return a block, whose header has its size. */
int on_native_return(struct pt_regs *ctx)
{
	struct native_book *b = this_book();
	u64 block = PT_REGS_RC(ctx);
	u32 thread = this_thread();

	if (!b)
		return 0;
	switch (bpf_get_attach_cookie(ctx)) {
	case NATIVE_REALLOC:
		if (b->resizing_thread != thread)
			return 0;
		b->resizing_thread = 0;
		/* Without memory the old block stays as it is. */
		if (block)
			count(b, b->resized, -1);
		break;
	case NATIVE_MEMALIGN:
		if (b->aligning_thread != thread)
			return 0;
		b->aligning_thread = 0;
		break;
	}
	if (block)
		count(b, header_of(block), 1);
	return 0;
}
