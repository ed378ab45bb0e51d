/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* The figures of a request at its end, from the kernel's structs. */
#ifndef PHPTRACE_REQUEST_FIGURES_H
#define PHPTRACE_REQUEST_FIGURES_H

#include "read.h"
#include "request_events.h"
#include "rss.h"

/* Threads of a request that have an arena each: with more, the rounding of the others counts as mapped. */
#define ARENAS_ROUNDED 8

/*
 * The part of `mapped` bytes that threads' arenas took for blocks of so many bytes, or gave back: each does so by
 * pages. How many arenas did is not known.
 */
static __always_inline s64 of_the_arenas(s64 mapped, s64 blocks, s64 page)
{
	s64 rounding = ARENAS_ROUNDED * page;

	if (mapped > 0 && blocks > 0)
		return mapped < blocks + rounding ? mapped : blocks;
	if (mapped < 0 && blocks < 0)
		return mapped > blocks - rounding ? mapped : blocks;
	return 0;
}

/* The figures of a request that is over, by its end or its worker's death. */
static __always_inline void close_request(struct worker *w, struct kernel *k, u64 task)
{
	struct request *r = &w->request;

	w->in_request = 0;
	r->ended_ns = bpf_ktime_get_ns();
	r->cpu_ns = kernel_u64(task + k->task_sum_exec_runtime) - w->cpu_before_ns;
	r->minor_faults = kernel_u64(task + k->task_min_flt) - w->minor_before;
	r->major_faults = kernel_u64(task + k->task_maj_flt) - w->major_before;
}

static __always_inline void sample_after(struct request *r, struct kernel *k, u64 task, u64 mm)
{
	struct rss rss = {};

	read_rss(k, task, mm, &rss);
	r->anon_after = rss.anon * k->page_size;
	r->file_after = rss.file * k->page_size;
	r->shmem_after = rss.shmem * k->page_size;
	if (r->anon_after > r->anon_peak)
		r->anon_peak = r->anon_after;
	r->vm_after = kernel_u64(mm + k->mm_total_vm) * k->page_size;
}

#endif
