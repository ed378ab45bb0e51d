/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Reads of user and kernel memory, and the exact RSS of a process. No maps, no policy.
 */
#ifndef PHPTRACE_MEMORY_H
#define PHPTRACE_MEMORY_H

#include "request_events.h"

/* bcc takes 0.1 s of compile time for each textual bpf_probe_read_user(); hence one of each. */
static __always_inline int read_user(void *to, u32 bytes, u64 from)
{
	return bpf_probe_read_user(to, bytes, (void *)from);
}

static __always_inline int read_user_text(void *to, u32 bytes, u64 from)
{
	return bpf_probe_read_user_str(to, bytes, (void *)from);
}

static __always_inline u64 user_u64(u64 from)
{
	u64 value = 0;

	read_user(&value, sizeof(value), from);
	return value;
}

static __always_inline u64 kernel_u64(u64 from)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)from);
	return value;
}

static __always_inline u32 kernel_u32(u64 from)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)from);
	return value;
}

/* Indices of mm->rss_stat: include/linux/mm_types_task.h, Linux 5.10 to 6.18. */
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SHMEMPAGES 3

/* Pages, exact: what /proc/PID/status shows. */
struct rss {
	s64 file;
	s64 anon;
	s64 shmem;
};

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

static __always_inline void read_rss(struct kernel *k, u64 task, u64 mm, struct rss *rss)
{
	if (k->rss_kind == RSS_PERCPU)
		read_rss_percpu(k, mm, rss);
	else
		read_rss_split(k, task, mm, rss);
}

#endif
