/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Bounded reads of user and kernel memory. No maps, no policy. A value that cannot be read is 0.
 */
#ifndef PHPTRACE_READ_H
#define PHPTRACE_READ_H

/*
 * bcc takes 0.1 s of compile time for each textual bpf_probe_read_user(); hence one of each. Returns 0,
 * or < 0 if not all could be read.
 */
static __always_inline int read_user(void *to, u32 bytes, u64 from)
{
	return bpf_probe_read_user(to, bytes, (void *)from);
}

/* Up to a NUL, at most `bytes` with it; returns the bytes stored, NUL included, or < 0. */
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

#endif
