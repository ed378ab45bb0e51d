/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What both programs need. No maps: bcc rewrites map calls in a program's own file only.
 */
#ifndef PHPTRACE_COMMON_H
#define PHPTRACE_COMMON_H

/* BPF_RB_NO_WAKEUP: the reader comes by on a timer; waking it would cost the worker 15 µs. */
#define NO_WAKEUP 1
/* include/linux/err.h, Linux 6.18: a system call that fails returns -MAX_ERRNO to -1. */
#define MAX_ERRNO 4095
#define offsetof(type, member) __builtin_offsetof(type, member)

static __always_inline bool failed(u64 result)
{
	return result >= (u64)-MAX_ERRNO;
}

#endif
