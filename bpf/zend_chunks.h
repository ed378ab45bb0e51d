/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Whether an address is in the memory that Zend's allocator manages. */
#ifndef PHPTRACE_ZEND_CHUNKS_H
#define PHPTRACE_ZEND_CHUNKS_H

#include "growth_events.h"
#include "read.h"

/* ZEND_MM_CHUNK_SIZE and its alignment: Zend/zend_alloc_sizes.h, PHP 7.0 to 8.6 */
#define ZEND_CHUNK (2ULL << 20)
#define FIRST_PAGE 4096 /* ZEND_MM_FIRST_PAGE, which has the header */
#define HEAP_WORDS 12 /* of zend_mm_heap, from real_peak, in which main_chunk is */
#define HUGE_BLOCKS 16

/* zend_mm_huge_list: Zend/zend_alloc.c, PHP 7.0 to 8.6, without ZEND_DEBUG */
struct huge_block {
	u64 address;
	u64 bytes;
	u64 next;
};

/*
 * True if an address is in one of Zend's huge blocks, of 2 MiB and more, which have no header: the latest ones are
 * looked through. The list of them stands before the address of the main chunk, in which the heap is.
 */
static __always_inline bool is_huge_block(u64 heap, struct stack_layout *layout, u64 address)
{
	u64 main_chunk = heap & ~(ZEND_CHUNK - 1), next = 0;
	u64 words[HEAP_WORDS] = {};
	struct huge_block block;
	int i;

	read_user(words, sizeof(words), heap + layout->heap_real_peak);
	for (i = 1; i < HEAP_WORDS; i++) {
		if (words[i] == main_chunk)
			next = words[i - 1];
	}
	for (i = 0; i < HUGE_BLOCKS; i++) {
		if (!next || read_user(&block, sizeof(block), next))
			return false;
		if (address - block.address < block.bytes)
			return true;
		next = block.next;
	}
	return false;
}

/*
 * True if an address is known not to be Zend's. `heap` is where its zend_mm_heap is, 0 if that is not known. Each of
 * its chunks begins with the address of its heap (Zend/zend_alloc.c, PHP 7.0 to 8.6: struct _zend_mm_chunk). The first
 * page of a chunk is not written yet when it is touched first, so that a first page of 2 MiB passes for Zend's.
 */
static __always_inline bool is_native(u64 heap, struct stack_layout *layout, u64 address)
{
	u64 inside = address & (ZEND_CHUNK - 1);

	return heap && inside >= FIRST_PAGE && user_u64(address - inside) != heap &&
	       !is_huge_block(heap, layout, address);
}

#endif
