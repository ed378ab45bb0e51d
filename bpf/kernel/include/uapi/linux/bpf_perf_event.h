/* SPDX-License-Identifier: GPL-2.0 OR MIT */
#ifndef PHPTRACE_UAPI_LINUX_BPF_PERF_EVENT_H
#define PHPTRACE_UAPI_LINUX_BPF_PERF_EVENT_H

#include <uapi/linux/ptrace.h>

/* include/uapi/linux/bpf_perf_event.h, Linux 4.9 to 6.18; bpf_user_pt_regs_t is pt_regs on x86-64. */
struct bpf_perf_event_data {
	struct pt_regs regs;
	__u64 sample_period;
	__u64 addr;
};

#endif
