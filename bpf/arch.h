/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What is x86-64's alone: another architecture needs this file, and struct pt_regs in
 * kernel/include/linux/ptrace.h. Arguments and results at a uprobe come by bcc's PT_REGS_*.
 */
#ifndef PHPTRACE_ARCH_H
#define PHPTRACE_ARCH_H

/* arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18; tracer/targets/libc.py has them, too. */
#define SYS_MMAP 9
#define SYS_MUNMAP 11
#define SYS_BRK 12
#define SYS_MREMAP 25

/* Members of struct pt_regs behind a system call: arch/x86/entry/calling.h, Linux 6.18. */
#define REG_SYSCALL_NUMBER orig_ax
#define REG_SYSCALL_ARG1 di
#define REG_SYSCALL_ARG2 si
#define REG_SYSCALL_ARG3 dx

/* Where PHP's interpreter keeps the running call and its opline: Zend/zend_execute.c, PHP 8.2. */
#define REG_EXECUTE_DATA r14 /* ZEND_VM_FP_GLOBAL_REG */
#define REG_OPLINE r15 /* ZEND_VM_IP_GLOBAL_REG */

#endif
