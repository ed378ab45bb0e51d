/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the BPF programs share with tracer/backends/records/request_structs.py. Every field has a fixed
 * width and every hole is named, so that the layout is the same for every compiler; a unit test
 * compiles this file and compares each offset with the Python side.
 *
 * Bytes unless the comment says else. Times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef PHPTRACE_REQUEST_EVENTS_H
#define PHPTRACE_REQUEST_EVENTS_H

#define SCRIPT_MAX 1024 /* bytes of SCRIPT_FILENAME kept; the full length is always known */
#define URI_MAX 2048 /* bytes of REQUEST_URI kept; the full length is always known */
#define TITLE_MAX 64 /* bytes of a worker's process title kept */
#define CPUS_MAX 512 /* possible CPUs a kernel may have */
#define REPLACED -1 /* exit_code of a worker that ran another program */
#define PHP_BINARIES_MAX 16 /* different PHP binaries traced at a time */

#ifndef WORKERS_MAX
#define WORKERS_MAX 1024 /* processes watched at a time; the loader may raise it */
#endif
#ifndef POSSIBLE_CPUS
#define POSSIBLE_CPUS 2 /* set by the loader: how many per-CPU counters to sum */
#endif

/* The first word of every record of the ring `events`. */
enum event_kind {
	EVENT_REQUEST = 1,
	EVENT_BORN = 2, /* a watched master forked a worker, or a worker's fork begins to serve */
	EVENT_TITLED = 3, /* a worker born under watch began its first request: its title is set */
	EVENT_DIED = 4,
	EVENT_EXECED = 5, /* a master replaced itself: graceful reload, or upgrade */
	EVENT_RELEASED = 6, /* blocks that an earlier request had allocated were freed */
	EVENT_FORKED = 7, /* a process that a worker forked, and that served nothing, ended */
	EVENT_OOM_DIED =
		8, /* as EVENT_DIED, of a process that the kernel's OOM killer had chosen */
};

/* struct request.flags: what could not be measured, and how the request ended. */
enum request_flag {
	REQUEST_START_NOT_SEEN = 1 << 0, /* was running when tracing began: only its end was seen */
	REQUEST_END_NOT_SEEN = 1 << 1, /* the worker left in mid-request: no "after" */
	REQUEST_ZEND_HEAP_UNKNOWN = 1 << 2, /* Zend's heap could not be read */
	REQUEST_TEARDOWN_NOT_SEEN = 1
				    << 3, /* zend_mm_shutdown() was not seen: no peak, no status */
	REQUEST_URI_IS_SCRIPT_NAME = 1 << 4, /* uri is SG(request_info).request_uri: SCRIPT_NAME */
	REQUEST_URI_UNKNOWN = 1 << 5,
	REQUEST_SCRIPT_IS_PATH_TRANSLATED = 1 << 6, /* script is SG(request_info).path_translated */
	REQUEST_NO_SCRIPT = 1 << 7, /* PHP ran no file: 404, or not a file request */
	REQUEST_METHOD_FROM_SAPI = 1 << 8,
	REQUEST_METHOD_UNKNOWN = 1 << 9,
	REQUEST_EXITED = 1 << 10, /* the script called exit() or die() */
	REQUEST_FATAL = 1 << 11, /* the last error was a fatal one, and of this request */
	REQUEST_SCRIPT_END_NOT_SEEN = 1
				      << 12, /* php_request_shutdown() was not seen: no used_end */
	REQUEST_PHP_LAYOUT_UNKNOWN =
		1 << 13, /* this PHP's globals are unknown: no status, no fatal */
	REQUEST_DETACHED = 1 << 14, /* tracing ended in mid-request */
	REQUEST_NATIVE_NOT_COUNTED =
		1 << 15, /* its malloc and free calls were not counted, or not all */
	REQUEST_MAPPINGS_NOT_READ = 1 << 16, /* its private writable mappings were not measured */
	REQUEST_CALLS_NOT_SEEN = 1 << 17, /* its memory calls were not seen, brk among them */
	REQUEST_USAGE_NOT_READ = 1 << 18, /* its CPU time and page faults were not read */
	REQUEST_ENDING_UNKNOWN = 1 << 19, /* a fatal error may have ended it */
	REQUEST_NATIVE_BETWEEN_NOT_COUNTED =
		1 << 20, /* its native_between_bytes are not known, or not all */
	REQUEST_OOM_VICTIM = 1 << 21, /* the kernel's OOM killer had chosen its worker */
};

struct request {
	__u32 kind; /* EVENT_REQUEST */
	__u32 pid;
	__u32 nth; /* this worker's n-th request seen, from 1 */
	__u32 flags; /* enum request_flag */
	__u64 started_ns;
	__u64 ended_ns;
	__u64 cpu_ns; /* CPU time of the worker's main thread between start and end */
	/* From here to major_faults in the order of facts.Request: the reader copies each field by its name. */
	__s64 anon_before;
	__s64 anon_end; /* at entry of zend_mm_shutdown(): the script is over, Zend has freed nothing */
	__s64 anon_after;
	__s64 file_before;
	__s64 file_after;
	__s64 shmem_before;
	__s64 shmem_after;
	__s64 anon_peak; /* highest of the exact samples taken */
	/* Read in the worker's own memory, so untrusted: signed, as the columns that store them are. */
	__s64 zend_used_end; /* at entry of php_request_shutdown() */
	__s64 zend_peak; /* at entry of zend_mm_shutdown(), as real_peak and real_end */
	__s64 zend_real_before;
	__s64 zend_real_peak;
	__s64 zend_real_end;
	__s64 zend_real_after;
	__s64 memory_limit; /* the setting in force; -1 is unlimited */
	__s64 vm_before;
	__s64 vm_after;
	__s64 map_bytes; /* sums of the worker's own arguments: signed, for the same reason */
	__s64 map_calls;
	__s64 unmap_bytes;
	__s64 unmap_calls;
	__s64 brk_bytes; /* > 0 grown, < 0 shrunk: net, from mm->brk */
	__s64 brk_calls;
	__s64 native_alloc_bytes; /* malloc's chunks */
	__s64 native_alloc_calls;
	__s64 native_free_bytes; /* without blocks that were allocated between requests */
	__s64 native_free_calls;
	__s64 native_freed_earlier; /* of these bytes: blocks from before this request */
	__s64 native_mapped_bytes; /* other private writable mappings: neither Zend's nor malloc's */
	/*
	 * Net, since the request before ended or, if that is later, since counting began: allocated and freed between
	 * the two, less what this one freed of blocks that were allocated between requests.
	 */
	__s64 native_between_bytes;
	__s64 minor_faults;
	__s64 major_faults;
	__s32 status; /* HTTP status; 0 where SG(sapi_headers) was never set */
	__s32 exit_code; /* task->exit_code where the worker died in mid-request */
	__u32 script_bytes; /* full length, before the cut at SCRIPT_MAX */
	__u32 uri_bytes; /* full length, before the cut at URI_MAX */
	__u16 script_stored; /* bytes that follow, script first */
	__u16 uri_stored;
	__u32 pad;
	char method[16]; /* NUL-terminated; cut at 15 */
};

/* What was allocated and freed by malloc and its like. Sums only grow, so that a request is the difference of two. */
struct native_sums {
	__s64 alloc_bytes;
	__s64 alloc_calls;
	__s64 free_bytes;
	__s64 free_calls;
	__s64 mapped_bytes; /* net: of these, chunks that are mappings of their own (glibc: IS_MMAPPED) */
	__s64 arena_bytes; /* net: chunks of threads' arenas (NON_MAIN_ARENA), which are mappings that grow */
	__s64 freed_earlier; /* of free_bytes: blocks that were not allocated in the request that freed them */
	__s64 unsure; /* freed blocks whose size, or whose request, is not known */
	__s64 arena_freed_earlier; /* of freed_earlier: chunks of threads' arenas */
	__s64 between_bytes; /* net: allocated or freed between requests, and of blocks so allocated, freed in one */
};

/*
 * What a worker has allocated and freed natively since it was linked; keyed by tgid, absent where its calls are not
 * counted. The allocations are those of the thread that runs its requests, and of threads that a request starts until
 * it ends.
 */
struct native_book {
	struct native_sums sums;
	__u64 link; /* set by the loader: another one for each time the worker is linked */
	__u64 since_ns; /* set by the loader, the first link: blocks of requests before that are another worker's */
	__u64 request; /* started_ns of the running request; 0 between requests */
	__u64 ended; /* requests that began and ended since the link */
	__u64 hits; /* of the probes; threads may overwrite each other's */
	__u64 owners_before; /* when the running request began: owners that were noted, of all workers */
	__u64 released_owner; /* started_ns of the request whose blocks were freed last, and what was not sent yet */
	__s64 released_bytes;
	__s64 released_blocks;
	__u64 released_resized; /* 1 = by realloc(), which moved them */
	__u64 resized_block; /* the block that realloc() is at */
	__u64 resized_header;
	__u32 thread; /* runs the requests; until the first one begins, the main thread */
	__u16 resizing; /* 1 = that thread is in realloc() */
	__u16 aligning; /* 1 = it is in the core of memalign() */
	__s64 gap; /* bytes to allocate until the next block is sampled; 0 = none is */
};

/* An earlier request of the worker, which is known by when it started, no longer holds these blocks. */
struct release_event {
	__u32 kind; /* EVENT_RELEASED */
	__u32 pid;
	__u64 owner_started_ns; /* 0 = one that was not counted, or none: of these, blocks that were resized alone */
	__u64 freed_by_started_ns; /* the request that freed them; 0 = none ran */
	__s64 bytes;
	__s64 blocks;
	__u32 idle; /* 1 = freed while no request ran: maybe the worker is about to end */
	__u32 resized; /* 1 = by realloc(): the blocks live on, in others of the request that freed them */
};

struct fork_event {
	__u32 kind; /* EVENT_FORKED */
	__u32 pid;
	__u32 parent_pid; /* the worker */
	__u32 pad;
	__u64 request_started_ns; /* the worker's request; 0 = it was between requests */
	__u64 ended_ns; /* 0 = it runs when tracing ends */
};

struct process_event {
	__u32 kind; /* EVENT_BORN .. EVENT_EXECED */
	__u32 pid;
	__u32 parent_pid;
	__s32 exit_code; /* task->exit_code: signal in the low 7 bits, exit status << 8 */
	__u64 at_ns;
	__u64 born_boot_ns; /* task->start_boottime: CLOCK_BOOTTIME nanoseconds; 0 if unknown */
	char title[TITLE_MAX]; /* EVENT_TITLED: not NUL-terminated when cut */
};

/* struct worker.role, bits: the parent of `php -S` is both */
enum role {
	ROLE_MASTER = 1 << 0, /* its children are watched */
	ROLE_WORKER = 1 << 1, /* it serves requests */
};

/* struct worker.calls: where its mmap, munmap, mremap and brk are counted */
enum calls {
	CALLS_IN_LIBC = 1,
	CALLS_IN_KERNEL = 2,
};

/*
 * A watched process, keyed by tgid. A fork of a master or a worker gets an entry of its own; a process without
 * one is not traced.
 */
struct worker {
	__u32 role;
	__u32 binary; /* index into php_binaries */
	__u32 in_request; /* 1 = a request is running */
	__u32 titled; /* 1 = user space knows its title */
	__u32 requests; /* begun under watch */
	__u32 calls; /* enum calls */
	__u32 forked_by; /* the worker that forked it, until it begins a request of its own; 0 = none did */
	__u32 stale_error; /* 1 = a fatal error of an earlier request showed when the script ended, or called exit() then */
	__u32 oom_victim; /* 1 = the kernel's OOM killer has chosen it */
	__u32 pad;
	__u64 heap; /* address of the zend_mm_heap; 0 if unknown */
	__u64 bias; /* load address minus link address of the PHP binary */
	/* at the start of the running request, to be subtracted at its end */
	__u64 cpu_before_ns;
	__u64 minor_before;
	__u64 major_before;
	__u64 brk_before;
	__u64 data_before; /* pages: mm->data_vm */
	__u64 native_link; /* of its native_book then, or when the request before ended; 0 = it had none */
	struct native_sums
		native_before; /* the same; between_bytes of when the request before ended */
	struct request request;
	char strings[SCRIPT_MAX + URI_MAX + 8]; /* script, then uri, without gap; a NUL; padding */
};

/* Link addresses and structure offsets of a PHP binary. 0 = unknown, where noted. */
struct php_binary {
	__u64 startup_site; /* where the probe on php_request_startup() sits */
	__u64 heap_slot; /* alloc_globals.mm_heap; 0 = unknown */
	__u64 sapi_globals; /* 0 = unknown */
	__u64 core_globals; /* 0 = unknown */
	__u64 executor_globals; /* 0 = unknown */
	__u32 heap_size; /* offsets in zend_mm_heap */
	__u32 heap_peak;
	__u32 heap_real_size;
	__u32 heap_real_peak;
	__u32 sg_method; /* offsets in sapi_globals_struct */
	__u32 sg_path_translated;
	__u32 sg_request_uri;
	__u32 sg_response_code;
	__u32 pg_memory_limit; /* offsets in php_core_globals */
	__u32 pg_last_error_type;
	__u32 pg_last_error_message;
	__u32 eg_exit_status; /* offset in zend_executor_globals */
	__u32 fcgi_env; /* offset of env.hash_table in fcgi_request; 0 = this SAPI has none */
	__u32 known; /* 1 = sg_*, pg_* and eg_* are valid */
};

/* Where a probe of native.bpf.c sits: its cookie. */
enum native_site {
	NATIVE_MALLOC = 1,
	NATIVE_FREE = 2,
	NATIVE_CALLOC = 3,
	NATIVE_REALLOC = 4,
	NATIVE_MEMALIGN = 5,
};

/* How the kernel keeps RSS. */
enum rss_kind {
	RSS_PERCPU = 1, /* Linux >= 6.2: struct percpu_counter rss_stat[] */
	RSS_SPLIT = 2, /* before: mm->rss_stat.count[] plus task->rss_stat.count[] */
};

/* Offsets from BTF; 0 where a field is absent. */
struct kernel {
	__u32 task_mm;
	__u32 task_tgid;
	__u32 task_pid;
	__u32 task_exit_code;
	__u32 task_min_flt;
	__u32 task_maj_flt;
	__u32 task_sum_exec_runtime;
	__u32 task_start_time;
	__u32 task_start_boottime;
	__u32 task_rss_stat; /* RSS_SPLIT: offset of the count array */
	__u32 mm_rss_stat;
	__u32 mm_total_vm;
	__u32 mm_brk;
	__u32 mm_arg_start;
	__u32 mm_data_vm;
	__u32 counter_size; /* RSS_PERCPU: sizeof(struct percpu_counter) */
	__u32 counter_count;
	__u32 counter_counters;
	__u32 rss_kind;
	__u32 pad;
	__u64 page_size;
	__u64 percpu_offset[CPUS_MAX]; /* __per_cpu_offset[] */
};

/*
 * The loader's own process as the programs see it, which is compared with /proc/self before any worker
 * is measured; and, if the kernel hides a symbol's address, some of its text to decode the address from.
 */
struct self_check {
	__u64 text_from; /* in: kernel address to copy from; 0 = nothing */
	__u32 pid; /* in: the loader */
	__u32 seen; /* out: 1 when the below is filled */
	__u64 vm; /* out: bytes */
	__s64 anon; /* out: bytes */
	__s64 file; /* out: bytes */
	__s64 shmem; /* out: bytes */
	__u8 text[512]; /* out */
};

/* Index into the map `lost`: what could not be delivered. */
enum lost {
	LOST_REQUESTS = 0, /* the ring was full */
	LOST_PROCESS_EVENTS = 1, /* the ring was full */
	LOST_WORKERS = 2, /* the table of workers was full: a worker was born that is not traced */
	LOST_RELEASES = 3, /* the ring was full */
	LOST_KINDS = 4,
};

#endif
