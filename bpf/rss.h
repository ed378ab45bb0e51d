/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The exact RSS of a process, in pages. No maps, no policy.
 *
 * Since 6.2 it is exact for every process. Before, it is exact for a process of one thread, as a
 * php-fpm worker is: each task keeps the pages of up to 64 page faults to itself
 * (TASK_RSS_EVENTS_THRESH, mm/memory.c, Linux 6.1), and only the running task's are read here, not
 * those of other threads.
 */
#ifndef PHPTRACE_RSS_H
#define PHPTRACE_RSS_H

#include "request_events.h"
#include "read.h"

/* Indices of mm->rss_stat: include/linux/mm_types_task.h, Linux 5.10 to 6.18. */
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SHMEMPAGES 3

/* Pages. */
struct rss {
	s64 file;
	s64 anon;
	s64 shmem;
};

/* Linux >= 6.2: mm->rss_stat[] are percpu_counters. */
static __always_inline void read_rss_percpu(struct kernel *k, u64 mm, struct rss *rss)
{
	u64 counter = mm + k->mm_rss_stat;
	u64 file, anon, shmem;
	s32 parts[4];
	int cpu;

	rss->file = kernel_u64(counter + MM_FILEPAGES * k->counter_size + k->counter_count);
	rss->anon = kernel_u64(counter + MM_ANONPAGES * k->counter_size + k->counter_count);
	rss->shmem = kernel_u64(counter + MM_SHMEMPAGES * k->counter_size + k->counter_count);
	counter += k->counter_counters;
	file = kernel_u64(counter + MM_FILEPAGES * k->counter_size);
	anon = kernel_u64(counter + MM_ANONPAGES * k->counter_size);
	shmem = kernel_u64(counter + MM_SHMEMPAGES * k->counter_size);

	/* percpu_counter_init_many() (lib/percpu_counter.c, >= 6.6) lays the parts side by side. */
	if (anon == file + 4 && shmem == file + 12) {
		for (cpu = 0; cpu < POSSIBLE_CPUS; cpu++) {
			if (bpf_probe_read_kernel(parts, sizeof(parts),
						  (void *)(file + k->percpu_offset[cpu])))
				continue;
			rss->file += parts[MM_FILEPAGES];
			rss->anon += parts[MM_ANONPAGES];
			rss->shmem += parts[MM_SHMEMPAGES];
		}
		return;
	}
	for (cpu = 0; cpu < POSSIBLE_CPUS; cpu++) {
		rss->file += (s32)kernel_u32(file + k->percpu_offset[cpu]);
		rss->anon += (s32)kernel_u32(anon + k->percpu_offset[cpu]);
		rss->shmem += (s32)kernel_u32(shmem + k->percpu_offset[cpu]);
	}
}

/* Before: mm->rss_stat.count[], and what the running task has not yet added to them. */
static __always_inline void read_rss_split(struct kernel *k, u64 task, u64 mm, struct rss *rss)
{
	u64 shared = mm + k->mm_rss_stat, own = task + k->task_rss_stat;

	rss->file = kernel_u64(shared + 8 * MM_FILEPAGES);
	rss->anon = kernel_u64(shared + 8 * MM_ANONPAGES);
	rss->shmem = kernel_u64(shared + 8 * MM_SHMEMPAGES);
	if (!k->task_rss_stat)
		return;
	rss->file += (s32)kernel_u32(own + 4 * MM_FILEPAGES);
	rss->anon += (s32)kernel_u32(own + 4 * MM_ANONPAGES);
	rss->shmem += (s32)kernel_u32(own + 4 * MM_SHMEMPAGES);
}

/* `mm` is that of the running `task`, or nothing if it has none. */
static __always_inline void read_rss(struct kernel *k, u64 task, u64 mm, struct rss *rss)
{
	if (k->rss_kind == RSS_PERCPU)
		read_rss_percpu(k, mm, rss);
	else
		read_rss_split(k, task, mm, rss);
}

#endif
