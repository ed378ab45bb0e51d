/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What growth.bpf.c shares with tracer/backends/records/stack_structs.py; the rules are those of
 * request_events.h.
 *
 * Once a request, a stack is sent with its hash, to which growth then refers; before the stack, also
 * once a request, the functions in it.
 */
#ifndef PHPTRACE_GROWTH_EVENTS_H
#define PHPTRACE_GROWTH_EVENTS_H

#define NAME_MAX_BYTES 128 /* a function's or class's name and NUL; its beginning is kept */
#define FILE_MAX_BYTES 256 /* a file's path and NUL; its end is kept */
#define GROWTH_SLOTS 64 /* stacks of a request whose bytes the kernel adds up at a time */

#ifndef DEPTH_MAX
#define DEPTH_MAX 128 /* frames of a stack, from the innermost; set by the loader */
#endif
#ifndef BLOCKS_MAX
#define BLOCKS_MAX 1 /* sampled native blocks that are held at a time; set by the loader */
#endif
#define ALLOCATING_MAX 1024 /* threads in the middle of an allocation that is sampled */
#define GAP_STEPS 1024 /* parts of the exponential distribution, each as probable as another */

/* The first word of every record of the ring `stack_events`. */
enum stack_event_kind {
	EVENT_FUNCTION = 1,
	EVENT_STACK = 2,
	EVENT_GROWTH = 3,
	EVENT_MEMORY_CALL = 4,
};

enum metric {
	METRIC_RSS = 1, /* page faults */
	METRIC_MAPPED = 2, /* mmap, munmap, mremap, brk */
	METRIC_ZEND = 3, /* zend_mm_heap.size, sampled */
	METRIC_NATIVE = 4, /* page faults outside Zend's chunks; METRIC_RSS has the others alone */
};

/* zend_function.type: Zend/zend_compile.h, PHP 7.0 to 8.6 */
enum function_type {
	FUNCTION_INTERNAL = 1,
	FUNCTION_USER = 2,
	FUNCTION_EVAL = 4,
};

enum function_flag {
	FUNCTION_NAME_CUT = 1 << 0,
	FUNCTION_CLASS_CUT = 1 << 1,
	FUNCTION_FILE_CUT = 1 << 2,
	FUNCTION_NAMELESS = 1 << 3, /* a file's own code, eval'd code, or a fiber's fake function */
	FUNCTION_CLASSLESS = 1 << 4,
	FUNCTION_FILELESS = 1 << 5,
};

struct function_event {
	__u32 kind; /* EVENT_FUNCTION */
	__u32 pid;
	__u32 nth; /* the request in which it was seen */
	__u32 type; /* enum function_type */
	__u64 id; /* struct frame.function refers to it */
	__u32 flags; /* enum function_flag */
	__u32 line_start;
	char name[NAME_MAX_BYTES]; /* NUL-terminated, as the others */
	char class_name[NAME_MAX_BYTES];
	char file[FILE_MAX_BYTES];
};

struct frame {
	__u64 function; /* function_event.id; 0 = nothing to show: a dummy frame of the engine */
	__u32 line; /* 0 = unknown, or an internal function */
	__u32 pad;
};

enum stack_flag {
	STACK_TRUNCATED = 1 << 0, /* there are more frames below */
	STACK_CORRUPT = 1 << 1, /* the frames below are malformed */
	STACK_LOST = 1 << 2, /* a function in it could not be sent; nor is the stack then */
};

struct stack_event {
	__u32 kind; /* EVENT_STACK */
	__u32 pid;
	__u32 nth;
	__u32 flags; /* enum stack_flag */
	__u64 hash;
	__u32 depth; /* frames that follow, the innermost first */
	__u32 pad;
	struct frame frames[DEPTH_MAX];
};

/* The hash of growth that has no stack. */
#define HASH_NO_PHP 0 /* no PHP code was running */
#define HASH_THREAD 1 /* it was not the worker's main thread */
#define HASH_LOST 2 /* it could not be sent */
#define HASHES_RESERVED 16 /* stacks have hashes from here */

struct growth_event {
	__u32 kind; /* EVENT_GROWTH */
	__u32 pid;
	__u32 nth;
	__u32 metric; /* enum metric */
	__u64 hash;
	__s64 bytes;
	__u32 samples;
	__u32 pad;
};

enum memory_call {
	CALL_MMAP = 1,
	CALL_MUNMAP = 2,
	CALL_MREMAP = 3,
	CALL_BRK = 4, /* address: the break when the request began, to: the new one */
};

struct memory_call_event {
	__u32 kind; /* EVENT_MEMORY_CALL */
	__u32 pid;
	__u32 nth;
	__u32 call; /* enum memory_call */
	__u64 hash; /* HASH_NO_PHP for munmap: it is taken off the stack that mapped it */
	__u64 address;
	__u64 bytes;
	__u64 to; /* CALL_MREMAP: where it is now */
	__u64 to_bytes;
	__u32 script_ended; /* 1 = the script was over: PHP was cleaning up */
	__u32 pad;
};

/* Bytes of one stack and metric, added up before they are sent. */
struct growth_slot {
	__u64 hash;
	__s64 bytes;
	__u32 metric; /* 0 = the slot is free */
	__u32 samples;
};

/* Replaces the opline of the innermost frame in the hash, if the opline in memory misleads. */
struct top_frame {
	__u64 instead; /* its line, or the address of an internal function's name */
	__u64 known; /* 0 = use the opline in memory */
};

/*
 * The state of one worker, keyed by tgid. The records are built here, since a worker runs one program at
 * a time, and they are too large for a program's 512 bytes of stack.
 */
struct worker_stacks {
	__u32 nth; /* the request the rest is about */
	__u32 busy; /* 1 = a program is running on this; a clock sample that interrupts it is skipped */
	__u32 dirty; /* 1 = some slot is in use */
	__u32 pad;
	__u64 functions; /* ids assigned so far */
	__u64 zend_last; /* zend_mm_heap.size at the last sample; it is 0 when a request starts */
	struct growth_slot slots[GROWTH_SLOTS];
	struct top_frame top;
	struct function_event function;
	struct stack_event stack;
};

/* Where a PHP binary keeps its stack, indexed by struct worker.binary. */
struct stack_layout {
	__u64 current_execute_data; /* link address of EG(current_execute_data); 0 = unknown */
	__u32 heap_size; /* offsets in zend_mm_heap */
	__u32 heap_real_peak;
	__u32 filename; /* offsets in zend_op_array; line_start is right behind it */
	__u32 opcodes;
	__u32 last;
	__u32 generator_execute_data; /* offset in zend_generator */
	__u32 volatile_calls; /* bits of This.u1.type_info whose function may be freed within a request */
	__u32 pad;
};

struct sampling_config {
	__u64 fault_bytes; /* bytes that one sampled page fault stands for */
};

/*
 * A native block that was sampled, by its worker and the address that malloc() returned. When it is freed, it is
 * forgotten; but if it has outlived its request by then, it gets a key that the next block of that address does not.
 */
struct block_key {
	__u64 address;
	__u32 pid;
	__u32 outlived; /* its request, if it was freed; 0 = it is held */
};

/* Where it was allocated. */
struct block {
	__u64 hash; /* of the stack */
	__u64 bytes; /* glibc's chunk */
	__u32 nth; /* the request */
	__u32 pad;
};

struct block_config {
	__u32 retained_after; /* requests of its worker that a block has to outlive its own by */
	/* bytes between two samples: quantiles of the exponential distribution, the largest first */
	__u32 gaps[GAP_STEPS + 1];
};

/* Index into the map `lost_stacks`. */
enum lost_stacks {
	/* events whose bytes are missing: the ring or the table of workers was full */
	LOST_GROWTH = 0,
	/* stacks or functions that could not be sent: their bytes are under [stack lost] */
	LOST_STACKS = 1,
	/* sampled native blocks: their table was full */
	LOST_BLOCKS = 2,
	LOST_STACK_KINDS = 3,
};

#endif
