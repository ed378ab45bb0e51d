/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* bcc force-includes this file; its helpers.h refuses to go on without CONFIG_BPF_SYSCALL. */
#define CONFIG_BPF_SYSCALL 1
