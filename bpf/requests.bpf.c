// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Request boundaries, memory calls, and the birth and death of workers.
 *
 * One event a request. A worker's entry in `workers` is found by tgid, filled at the boundaries and
 * submitted at the end; processes without an entry leave at the first lookup. No addresses or
 * offsets are compiled in: a binary's are in `builds`, the kernel's in `layout`.
 */
#include <uapi/linux/ptrace.h>
#include "wire.h"

BPF_HASH(workers, u32, struct worker, WORKERS_MAX);
BPF_ARRAY(builds, struct build, BUILDS_MAX);
BPF_ARRAY(layout, struct kernel, 1);
BPF_ARRAY(lost, u64, LOST_KINDS);
BPF_ARRAY(blank, struct worker, 1);
BPF_ARRAY(self_check, struct self_check, 1);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

#define NO_WAKEUP                                                                                  \
	1 /* BPF_RB_NO_WAKEUP: the reader polls on a timer; waking it costs the worker 15 us */
#define MAX_ERRNO 4095
#define offsetof(type, member) __builtin_offsetof(type, member)
#define E_FATAL_ERRORS (1 | 4 | 16 | 64 | 256 | 4096)
/* E_ERROR, E_PARSE, E_CORE_ERROR, E_COMPILE_ERROR, E_USER_ERROR, E_RECOVERABLE_ERROR: Zend/zend_errors.h */

/* Indices of mm->rss_stat: include/linux/mm_types_task.h, Linux 5.10 to 6.18. */
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SHMEMPAGES 3

/* bcc takes 0.1 s of compile time for each textual bpf_probe_read_user(); hence one of each. */
static __always_inline int read_user(void *to, u32 bytes, u64 from)
{
	return bpf_probe_read_user(to, bytes, (void *)from);
}

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

static __always_inline void count_lost(u32 what)
{
	u64 *n = lost.lookup(&what);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline struct worker *this_worker(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct worker *w = workers.lookup(&pid);

	return w && w->role == ROLE_WORKER ? w : 0;
}

static __always_inline struct worker *this_request(void)
{
	struct worker *w = this_worker();

	return w && w->in_request ? w : 0;
}

static __always_inline struct kernel *the_kernel(void)
{
	u32 zero = 0;

	return layout.lookup(&zero);
}

/* Pages, exact: what /proc/PID/status shows. */
struct rss {
	s64 file;
	s64 anon;
	s64 shmem;
};

static __always_inline void read_rss_percpu(struct kernel *k, u64 mm, struct rss *rss)
{
	u64 counter = mm + k->mm_rss_stat;
	u64 file, anon, shmem;
	s32 parts[4];
	int cpu;

	rss->file = kernel_u64(counter + MM_FILEPAGES * k->counter_size + k->counter_count);
	rss->anon = kernel_u64(counter + MM_ANONPAGES * k->counter_size + k->counter_count);
	rss->shmem = kernel_u64(counter + MM_SHMEMPAGES * k->counter_size + k->counter_count);
	counter += k->counter_counters;
	file = kernel_u64(counter + MM_FILEPAGES * k->counter_size);
	anon = kernel_u64(counter + MM_ANONPAGES * k->counter_size);
	shmem = kernel_u64(counter + MM_SHMEMPAGES * k->counter_size);

	/* percpu_counter_init_many() (lib/percpu_counter.c, >= 6.6) lays the parts side by side. */
	if (anon == file + 4 && shmem == file + 12) {
		for (cpu = 0; cpu < POSSIBLE_CPUS; cpu++) {
			if (bpf_probe_read_kernel(parts, sizeof(parts),
						  (void *)(file + k->percpu_offset[cpu])))
				continue;
			rss->file += parts[MM_FILEPAGES];
			rss->anon += parts[MM_ANONPAGES];
			rss->shmem += parts[MM_SHMEMPAGES];
		}
		return;
	}
	for (cpu = 0; cpu < POSSIBLE_CPUS; cpu++) {
		rss->file += (s32)kernel_u32(file + k->percpu_offset[cpu]);
		rss->anon += (s32)kernel_u32(anon + k->percpu_offset[cpu]);
		rss->shmem += (s32)kernel_u32(shmem + k->percpu_offset[cpu]);
	}
}

static __always_inline void read_rss_split(struct kernel *k, u64 task, u64 mm, struct rss *rss)
{
	u64 shared = mm + k->mm_rss_stat, own = task + k->task_rss_stat;

	rss->file = kernel_u64(shared + 8 * MM_FILEPAGES);
	rss->anon = kernel_u64(shared + 8 * MM_ANONPAGES);
	rss->shmem = kernel_u64(shared + 8 * MM_SHMEMPAGES);
	if (!k->task_rss_stat)
		return;
	rss->file += (s32)kernel_u32(own + 4 * MM_FILEPAGES);
	rss->anon += (s32)kernel_u32(own + 4 * MM_ANONPAGES);
	rss->shmem += (s32)kernel_u32(own + 4 * MM_SHMEMPAGES);
}

static __always_inline void read_rss(struct kernel *k, u64 task, u64 mm, struct rss *rss)
{
	if (k->rss_kind == RSS_PERCPU)
		read_rss_percpu(k, mm, rss);
	else
		read_rss_split(k, task, mm, rss);
}

/* One more exact look at anon, for the request's peak; returns it, in bytes, or 0. */
static __always_inline s64 sample_anon(struct worker *w)
{
	struct kernel *k = the_kernel();
	u64 task = bpf_get_current_task(), mm;
	struct rss rss = {};
	s64 anon;

	if (!k)
		return 0;
	mm = kernel_u64(task + k->task_mm);
	if (!mm)
		return 0;
	read_rss(k, task, mm, &rss);
	anon = rss.anon * k->page_size;
	if (anon > w->request.anon_peak)
		w->request.anon_peak = anon;
	return anon;
}

static __always_inline void submit(struct worker *w)
{
	u32 bytes = sizeof(struct request) + w->request.script_stored + w->request.uri_stored;

	if (bytes > sizeof(struct request) + SCRIPT_MAX + URI_MAX)
		bytes = sizeof(struct request) + SCRIPT_MAX + URI_MAX;
	if (events.ringbuf_output(&w->request, bytes, NO_WAKEUP))
		count_lost(LOST_REQUESTS);
}

static __always_inline void submit_process(struct process_event *event)
{
	if (events.ringbuf_output(event, sizeof(*event), NO_WAKEUP))
		count_lost(LOST_PROCESS_EVENTS);
}

/* fcgi_hash_bucket: main/fastcgi.c, PHP 7.4 to 8.2. */
struct bucket {
	u32 hash;
	u32 name_bytes;
	u64 name;
	u32 value_bytes;
	u32 pad;
	u64 value;
	u64 next;
	u64 list_next;
};

/* A name of up to 16 bytes as two zero-padded words, and its FCGI_HASH_FUNC. */
struct env_name {
	u64 low;
	u64 high;
	u32 bytes;
	u32 hash;
};

#define WORD(a, b, c, d, e, f, g, h)                                                               \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 |             \
	 (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)
#define HASH(fourth, last_but_one, last, bytes)                                                    \
	(((u32)(fourth) << 2) + ((u32)(last_but_one) << 4) + ((u32)(last) << 2) + (bytes))

/*
 * Finds a FastCGI parameter; its bucket is in *b. The names are compared: the hash is so weak that
 * clients' headers collide with it, and a client may try to. Chains are followed for 16 steps.
 */
static __always_inline bool find_env(u64 table, const struct env_name *wanted, struct bucket *b)
{
	u64 at = user_u64(table + 8 * (wanted->hash & 127));
	u64 name[2];
	int step;

	for (step = 0; step < 16; step++) {
		if (!at || read_user(b, sizeof(*b), at))
			return false;
		if (b->hash == wanted->hash && b->name_bytes == wanted->bytes) {
			name[0] = 0;
			name[1] = 0;
			if (!read_user(name, wanted->bytes & 15, b->name) &&
			    name[0] == wanted->low && name[1] == wanted->high)
				return true;
		}
		at = b->next;
	}
	return false;
}

static __always_inline void read_script(struct worker *w, struct build *php, u64 table, u64 sapi)
{
	const struct env_name script_filename = {
		.low = WORD('S', 'C', 'R', 'I', 'P', 'T', '_', 'F'),
		.high = WORD('I', 'L', 'E', 'N', 'A', 'M', 'E', 0),
		.bytes = 15,
		.hash = HASH('I', 'M', 'E', 15),
	};
	struct request *r = &w->request;
	struct bucket b = {};
	u32 stored;
	u64 text;
	int n;

	if (table && find_env(table, &script_filename, &b)) {
		r->script_bytes = b.value_bytes;
		stored = b.value_bytes;
		if (stored > SCRIPT_MAX)
			stored = SCRIPT_MAX;
		if (!read_user(w->strings, stored, b.value)) {
			r->script_stored = stored;
			return;
		}
	}
	text = sapi && php->known ? user_u64(sapi + php->sg_path_translated) : 0;
	n = text ? read_user_text(w->strings, SCRIPT_MAX, text) : 0;
	if (n > 1) {
		r->script_bytes = n - 1;
		r->script_stored = n - 1;
		r->flags |= REQUEST_SCRIPT_FALLBACK;
		return;
	}
	r->script_bytes = 0;
	r->script_stored = 0;
	r->flags |= REQUEST_NO_SCRIPT;
}

/* After read_script(): the uri is stored behind the script. */
static __always_inline void read_uri(struct worker *w, struct build *php, u64 table, u64 sapi)
{
	const struct env_name request_uri = {
		.low = WORD('R', 'E', 'Q', 'U', 'E', 'S', 'T', '_'),
		.high = WORD('U', 'R', 'I', 0, 0, 0, 0, 0),
		.bytes = 11,
		.hash = HASH('U', 'R', 'I', 11),
	};
	struct request *r = &w->request;
	u32 offset = r->script_stored;
	struct bucket b = {};
	u32 stored;
	u64 text;
	int n;

	if (offset > SCRIPT_MAX)
		return;
	if (table && find_env(table, &request_uri, &b)) {
		r->uri_bytes = b.value_bytes;
		stored = b.value_bytes;
		if (stored > URI_MAX)
			stored = URI_MAX;
		if (!read_user(w->strings + offset, stored, b.value)) {
			r->uri_stored = stored;
			return;
		}
	}
	text = sapi && php->known ? user_u64(sapi + php->sg_request_uri) : 0;
	n = text ? read_user_text(w->strings + offset, URI_MAX, text) : 0;
	if (n > 1) {
		r->uri_bytes = n - 1;
		r->uri_stored = n - 1;
		r->flags |= REQUEST_URI_FALLBACK;
		return;
	}
	r->uri_bytes = 0;
	r->uri_stored = 0;
	r->flags |= REQUEST_NO_URI;
}

static __always_inline void read_method(struct worker *w, struct build *php, u64 table, u64 sapi)
{
	const struct env_name request_method = {
		.low = WORD('R', 'E', 'Q', 'U', 'E', 'S', 'T', '_'),
		.high = WORD('M', 'E', 'T', 'H', 'O', 'D', 0, 0),
		.bytes = 14,
		.hash = HASH('U', 'O', 'D', 14),
	};
	struct request *r = &w->request;
	struct bucket b = {};
	u64 text;

	if (table && find_env(table, &request_method, &b) &&
	    read_user_text(r->method, sizeof(r->method), b.value) > 1)
		return;
	text = sapi && php->known ? user_u64(sapi + php->sg_method) : 0;
	if (text && read_user_text(r->method, sizeof(r->method), text) > 1) {
		r->flags |= REQUEST_METHOD_FALLBACK;
		return;
	}
	r->flags |= REQUEST_NO_METHOD;
}

static __always_inline void send_title(struct kernel *k, u32 pid, u64 mm)
{
	struct process_event event = {
		.kind = EVENT_TITLED, .pid = pid, .at_ns = bpf_ktime_get_ns()};

	/* php-fpm writes its title over argv: sapi/fpm/fpm/fpm_env.c. */
	read_user(event.title, sizeof(event.title), kernel_u64(mm + k->mm_arg_start));
	submit_process(&event);
}

int on_startup(struct pt_regs *ctx)
{
	struct worker *w = this_worker();
	struct kernel *k = the_kernel();
	u64 task, mm, sapi = 0, table = 0;
	struct rss rss = {};
	struct request *r;
	struct build *php;

	if (!w || !k)
		return 0;
	php = builds.lookup(&w->build);
	if (!php)
		return 0;
	r = &w->request;
	task = bpf_get_current_task();
	mm = kernel_u64(task + k->task_mm);

	__builtin_memset(r, 0, sizeof(*r));
	r->kind = EVENT_REQUEST;
	r->pid = bpf_get_current_pid_tgid() >> 32;
	r->started_ns = bpf_ktime_get_ns();
	r->flags = REQUEST_NO_TEARDOWN | REQUEST_NO_SCRIPT_END;
	if (!w->titled) {
		w->titled = 1;
		send_title(k, r->pid, mm);
	}
	w->requests++;
	r->nth = w->requests;

	w->bias = PT_REGS_IP(ctx) - php->startup_site;
	w->heap = php->heap_slot ? user_u64(w->bias + php->heap_slot) : 0;
	if (w->heap)
		r->zend_real_before = user_u64(w->heap + php->heap_real_size);
	else
		r->flags |= REQUEST_NO_HEAP;
	if (!php->known)
		r->flags |= REQUEST_NO_LAYOUT;
	if (php->sapi_globals) {
		sapi = w->bias + php->sapi_globals;
		/* SG(server_context) is the first member, and the fcgi_request under php-fpm and php-cgi. */
		if (php->fcgi_env)
			table = user_u64(sapi);
		if (table)
			table += php->fcgi_env;
	}
	read_script(w, php, table, sapi);
	read_uri(w, php, table, sapi);
	read_method(w, php, table, sapi);

	w->cpu_before_ns = kernel_u64(task + k->task_sum_exec_runtime);
	w->minor_before = kernel_u64(task + k->task_min_flt);
	w->major_before = kernel_u64(task + k->task_maj_flt);
	w->hiwater_before = kernel_u64(mm + k->mm_hiwater_rss);
	w->brk_before = kernel_u64(mm + k->mm_brk);
	r->vm_before = kernel_u64(mm + k->mm_total_vm) * k->page_size;
	read_rss(k, task, mm, &rss);
	r->anon_before = rss.anon * k->page_size;
	r->file_before = rss.file * k->page_size;
	r->shmem_before = rss.shmem * k->page_size;
	r->anon_peak = r->anon_before;
	w->in_request = 1;
	return 0;
}

/* exit() and die() reach zend_throw_unwind_exit(): Zend/zend_exceptions.c, PHP >= 8.0. */
int on_exit_call(struct pt_regs *ctx)
{
	struct worker *w = this_request();

	if (w)
		w->request.flags |= REQUEST_EXIT;
	return 0;
}

/*
 * Whether the script has been ended by an error: php_error_cb() then sets EG(exit_status) to 255
 * (main/main.c, PHP 8.2). The status is reset when a script is run, the error's type never, so both
 * may be an earlier request's; the caller has to know that they are not.
 */
static __always_inline bool ended_by_error(struct worker *w, struct build *php, s32 exit_status)
{
	s32 type = 0;

	if (exit_status != 255)
		return false;
	read_user(&type, sizeof(type), w->bias + php->core_globals + php->pg_last_error_type);
	return type & E_FATAL_ERRORS;
}

static __always_inline s32 exit_status_of(struct worker *w, struct build *php)
{
	s32 status = 0;

	read_user(&status, sizeof(status), w->bias + php->executor_globals + php->eg_exit_status);
	return status;
}

/* Entry of php_request_shutdown(): the script has ended, nothing has been freed. */
int on_script_end(struct pt_regs *ctx)
{
	struct worker *w = this_request();
	struct build *php;
	s32 exit_status;
	u64 globals;

	if (!w)
		return 0;
	php = builds.lookup(&w->build);
	if (!php)
		return 0;
	w->request.flags &= ~REQUEST_NO_SCRIPT_END;
	if (w->heap)
		w->request.zend_used_end = user_u64(w->heap + php->heap_size);
	if (!php->known)
		return 0;
	globals = w->bias + php->core_globals;
	w->request.memory_limit = user_u64(globals + php->pg_memory_limit);
	exit_status = exit_status_of(w, php);
	w->stale_exit = exit_status == 255;
	/* The message is freed at the end of each request: it is of this one. */
	if (ended_by_error(w, php, exit_status) && user_u64(globals + php->pg_last_error_message))
		w->request.flags |= REQUEST_FATAL;
	return 0;
}

/* Entry of zend_mm_shutdown(heap, ...): peaks are final, and are zeroed inside. */
int on_teardown(struct pt_regs *ctx)
{
	struct worker *w = this_request();
	struct build *php;

	if (!w)
		return 0;
	php = builds.lookup(&w->build);
	if (!php)
		return 0;
	w->request.flags &= ~REQUEST_NO_TEARDOWN;
	if (w->heap) {
		w->request.zend_peak = user_u64(w->heap + php->heap_peak);
		w->request.zend_real_peak = user_u64(w->heap + php->heap_real_peak);
		w->request.zend_real_end = user_u64(w->heap + php->heap_real_size);
	}
	if (php->known) {
		read_user(&w->request.status, 4,
			  w->bias + php->sapi_globals + php->sg_response_code);
		/* A shutdown function or destructor may have failed since. */
		if (!w->stale_exit && ended_by_error(w, php, exit_status_of(w, php)))
			w->request.flags |= REQUEST_FATAL;
	}
	w->request.anon_end = sample_anon(w);
	return 0;
}

/* What can be said of a request that is over, one way or the other. */
static __always_inline void close_request(struct worker *w, struct kernel *k, u64 task)
{
	struct request *r = &w->request;

	w->in_request = 0;
	r->ended_ns = bpf_ktime_get_ns();
	r->cpu_ns = kernel_u64(task + k->task_sum_exec_runtime) - w->cpu_before_ns;
	r->minor_faults = kernel_u64(task + k->task_min_flt) - w->minor_before;
	r->major_faults = kernel_u64(task + k->task_maj_flt) - w->major_before;
}

/* The end of php_request_shutdown(): Zend has given back what it gives back. */
int on_end(struct pt_regs *ctx)
{
	struct worker *w = this_worker();
	struct kernel *k = the_kernel();
	u64 task, mm, hiwater;
	struct rss rss = {};
	struct request *r;
	struct build *php;

	if (!w || !k)
		return 0;
	r = &w->request;
	if (!w->in_request) {
		if (w->requests)
			return 0;
		__builtin_memset(r, 0, sizeof(*r));
		r->kind = EVENT_REQUEST;
		r->pid = bpf_get_current_pid_tgid() >> 32;
		r->flags = REQUEST_NO_START;
		r->ended_ns = bpf_ktime_get_ns();
		w->requests = 1;
		r->nth = 1;
		submit(w);
		return 0;
	}
	php = builds.lookup(&w->build);
	if (!php)
		return 0;
	task = bpf_get_current_task();
	mm = kernel_u64(task + k->task_mm);
	read_rss(k, task, mm, &rss);
	r->anon_after = rss.anon * k->page_size;
	r->file_after = rss.file * k->page_size;
	r->shmem_after = rss.shmem * k->page_size;
	if (r->anon_after > r->anon_peak)
		r->anon_peak = r->anon_after;
	r->vm_after = kernel_u64(mm + k->mm_total_vm) * k->page_size;
	r->brk_bytes = kernel_u64(mm + k->mm_brk) - w->brk_before;
	hiwater = kernel_u64(mm + k->mm_hiwater_rss);
	if (hiwater > w->hiwater_before) {
		r->hiwater_rss = hiwater * k->page_size;
		r->flags |= REQUEST_HIWATER;
	}
	if (w->heap)
		r->zend_real_after = user_u64(w->heap + php->heap_real_size);
	close_request(w, k, task);
	submit(w);
	return 0;
}

/*
 * The four below sit on the conditional jump behind the `syscall` instruction in libc's wrappers:
 * the result and the arguments are still in registers there.
 */
static __always_inline bool failed(u64 result)
{
	return result >= (u64)-MAX_ERRNO;
}

static __always_inline u64 whole_pages(u64 bytes)
{
	struct kernel *k = the_kernel();

	return k ? (bytes + k->page_size - 1) & ~(k->page_size - 1) : bytes;
}

static __always_inline void count_call(struct worker *w, u64 mapped, u64 unmapped)
{
	if (mapped) {
		w->request.map_bytes += whole_pages(mapped);
		w->request.map_calls++;
	}
	if (unmapped) {
		w->request.unmap_bytes += whole_pages(unmapped);
		w->request.unmap_calls++;
	}
	sample_anon(w);
}

int on_mmap(struct pt_regs *ctx)
{
	struct worker *w = this_request();

	if (w && !failed(PT_REGS_RC(ctx)))
		count_call(w, PT_REGS_PARM2(ctx), 0);
	return 0;
}

int on_munmap(struct pt_regs *ctx)
{
	struct worker *w = this_request();

	if (w && !failed(PT_REGS_RC(ctx)))
		count_call(w, 0, PT_REGS_PARM2(ctx));
	return 0;
}

int on_mremap(struct pt_regs *ctx)
{
	struct worker *w = this_request();

	if (w && !failed(PT_REGS_RC(ctx)))
		count_call(w, PT_REGS_PARM3(ctx), PT_REGS_PARM2(ctx));
	return 0;
}

static __always_inline void count_brk(struct worker *w)
{
	w->request.brk_calls++;
	sample_anon(w);
}

int on_brk(struct pt_regs *ctx)
{
	struct worker *w = this_request();

	if (w)
		count_brk(w);
	return 0;
}

/* arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18 */
#define SYS_MMAP 9
#define SYS_MUNMAP 11
#define SYS_BRK 12
#define SYS_MREMAP 25

/*
 * The fallback where libc's wrappers have another form: every system call of every process passes
 * here. TP_PROTO(struct pt_regs *regs, long ret): include/trace/events/syscalls.h
 */
int on_syscall_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs regs;
	u64 number, from = ctx->args[0];
	struct worker *w;

	number = kernel_u64(from + offsetof(struct pt_regs, orig_ax));
	if (number != SYS_MMAP && number != SYS_MUNMAP && number != SYS_BRK && number != SYS_MREMAP)
		return 0;
	w = this_request();
	if (!w || failed(ctx->args[1]) || bpf_probe_read_kernel(&regs, sizeof(regs), (void *)from))
		return 0;
	if (number == SYS_MMAP)
		count_call(w, regs.si, 0);
	else if (number == SYS_MUNMAP)
		count_call(w, 0, regs.si);
	else if (number == SYS_MREMAP)
		count_call(w, regs.dx, regs.si);
	else
		count_brk(w);
	return 0;
}

/*
 * On task:task_rename, which hardly anybody ever fires; the loader does, by renaming itself to its
 * own name. TP_PROTO(struct task_struct *task, const char *comm): include/trace/events/task.h
 */
int on_rename(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task(), mm;
	struct kernel *k = the_kernel();
	struct self_check *check;
	struct rss rss = {};
	u32 zero = 0;

	check = self_check.lookup(&zero);
	if (!k || !check || check->pid != kernel_u32(task + k->task_tgid))
		return 0;
	if (check->text_from)
		bpf_probe_read_kernel(check->text, sizeof(check->text), (void *)check->text_from);
	mm = kernel_u64(task + k->task_mm);
	read_rss(k, task, mm, &rss);
	check->anon = rss.anon * k->page_size;
	check->file = rss.file * k->page_size;
	check->shmem = rss.shmem * k->page_size;
	check->vm = kernel_u64(mm + k->mm_total_vm) * k->page_size;
	check->seen = 1;
	return 0;
}

/* TP_PROTO(struct task_struct *parent, struct task_struct *child): include/trace/events/sched.h */
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct process_event event = {.kind = EVENT_BORN};
	u64 parent = ctx->args[0], child = ctx->args[1];
	struct kernel *k = the_kernel();
	struct worker *master, *born;
	u32 zero = 0;

	if (!k)
		return 0;
	event.parent_pid = kernel_u32(parent + k->task_tgid);
	master = workers.lookup(&event.parent_pid);
	if (!master || master->role != ROLE_MASTER)
		return 0;
	event.pid = kernel_u32(child + k->task_tgid);
	if (event.pid != kernel_u32(child + k->task_pid))
		return 0;
	born = blank.lookup(&zero);
	if (!born)
		return 0;
	workers.update(&event.pid, born);
	born = workers.lookup(&event.pid);
	if (!born) {
		count_lost(LOST_WORKERS);
		return 0;
	}
	born->build = master->build;
	born->role = ROLE_WORKER;
	event.at_ns = bpf_ktime_get_ns();
	if (k->task_start_boottime)
		event.born_boot_ns = kernel_u64(child + k->task_start_boottime);
	submit_process(&event);
	return 0;
}

int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct process_event event = {.kind = EVENT_EXECED, .at_ns = bpf_ktime_get_ns()};
	struct worker *w;

	event.pid = bpf_get_current_pid_tgid() >> 32;
	w = workers.lookup(&event.pid);
	if (!w)
		return 0;
	if (w->role == ROLE_WORKER) {
		event.kind = EVENT_DIED;
		event.exit_code = REPLACED;
		workers.delete(&event.pid);
	}
	submit_process(&event);
	return 0;
}

int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct process_event event = {.kind = EVENT_DIED};
	u64 id = bpf_get_current_pid_tgid(), task;
	struct kernel *k = the_kernel();
	struct worker *w;

	event.pid = id >> 32;
	if (!k || event.pid != (u32)id)
		return 0;
	w = workers.lookup(&event.pid);
	if (!w)
		return 0;
	task = bpf_get_current_task();
	event.exit_code = kernel_u32(task + k->task_exit_code);
	event.at_ns = bpf_ktime_get_ns();
	if (w->in_request) {
		/* Since 6.16 the memory is still there; before, there is nothing left to sample. */
		sample_anon(w);
		close_request(w, k, task);
		w->request.flags |= REQUEST_NO_END;
		w->request.exit_code = event.exit_code;
		submit(w);
	}
	submit_process(&event);
	workers.delete(&event.pid);
	return 0;
}
