/* SPDX-License-Identifier: GPL-2.0 OR MIT */
#ifndef PHPTRACE_LINUX_PTRACE_H
#define PHPTRACE_LINUX_PTRACE_H

/* The kernel's own field names, which bcc's PT_REGS_* use: arch/x86/include/asm/ptrace.h, Linux 6.1. */
struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};

#endif
