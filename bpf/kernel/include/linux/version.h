/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * bcc fills in the version of the running kernel itself. These programs take every offset from BTF
 * and never ask for the version, so it is enough that the macros exist.
 */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
#endif
