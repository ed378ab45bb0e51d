/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* bcc brings its own <linux/bpf.h>. */
