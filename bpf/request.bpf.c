// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Request boundaries, memory calls, and the birth and death of workers.
 *
 * One record a request. A worker's entry in `workers` is found by tgid, filled at the boundaries and
 * submitted at the end; processes without an entry leave at the first lookup. No addresses or
 * offsets are compiled in: a binary's are in `php_binaries`, the kernel's in `kernel_layout`.
 *
 * A request, in time; the programs and the fields of struct request that they write:
 *
 *   on_startup      entry of php_request_startup()    pid, nth, started_ns, *_before, the strings
 *   on_mmap …       behind libc's system calls        map_*, unmap_*, brk_calls, anon_peak
 *   on_exit_call    zend_throw_unwind_exit()          REQUEST_EXITED
 *   on_script_end   entry of php_request_shutdown()   zend_used_end, memory_limit, REQUEST_FATAL
 *   on_output_end   entry of php_output_deactivate()  REQUEST_FATAL; not under php-fpm
 *   on_teardown     entry of zend_mm_shutdown()       anon_end, zend_*peak, zend_real_end, status
 *   on_end          end of php_request_shutdown()     *_after, brk_bytes, ended_ns, cpu_ns, faults; submits
 *
 * Workers: on_fork enters every child. It sends EVENT_BORN for a master's child. For a worker's child,
 * on_startup sends it. A worker's first on_startup sends EVENT_TITLED; on_exit sends EVENT_DIED, after
 * the request that was cut off; on_exec sends EVENT_EXECED for a master.
 */
#include <uapi/linux/ptrace.h>
#include "request_events.h"
#include "arch.h"
#include "common.h"
#include "read.h"
#include "rss.h"
#include "php_request.h"
#include "php_error.h"
#include "request_figures.h"

BPF_HASH(workers, u32, struct worker, WORKERS_MAX);
BPF_ARRAY(php_binaries, struct php_binary, PHP_BINARIES_MAX);
BPF_ARRAY(kernel_layout, struct kernel, 1);
BPF_ARRAY(blank_worker, struct worker, 1);
BPF_ARRAY(self_check, struct self_check, 1);
BPF_ARRAY(lost, u64, LOST_KINDS);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
/* Filled by native.bpf.c. */
BPF_HASH(native_books, u32, struct native_book, WORKERS_MAX);
BPF_ARRAY(owners_noted, u64, 1);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

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

	/* Not by its bit: LLVM would mask the pointer with it, which the verifier refuses. */
	return w && w->role >= ROLE_WORKER ? w : 0;
}

static __always_inline struct worker *this_request(void)
{
	struct worker *w = this_worker();

	return w && w->in_request ? w : 0;
}

/* The running request, if its worker's calls are counted here and nowhere else. */
static __always_inline struct worker *request_counted(enum calls where)
{
	struct worker *w = this_request();

	return w && w->calls == where ? w : 0;
}

static __always_inline struct kernel *the_kernel(void)
{
	u32 zero = 0;

	return kernel_layout.lookup(&zero);
}

/* Samples anon, exactly, for the request's peak; returns it, in bytes, or 0 if it cannot be read. */
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

	if (bytes > sizeof(struct request) + SCRIPT_MAX + URI_MAX) /* never; for the verifier */
		bytes = sizeof(struct request) + SCRIPT_MAX + URI_MAX;
	if (events.ringbuf_output(&w->request, bytes, NO_WAKEUP))
		count_lost(LOST_REQUESTS);
}

static __always_inline void submit_process(struct process_event *event)
{
	if (events.ringbuf_output(event, sizeof(*event), NO_WAKEUP))
		count_lost(LOST_PROCESS_EVENTS);
}

static __always_inline void send_birth(u32 pid, u32 parent_pid, u64 born_boot_ns)
{
	struct process_event event = {
		.kind = EVENT_BORN,
		.pid = pid,
		.parent_pid = parent_pid,
		.at_ns = bpf_ktime_get_ns(),
		.born_boot_ns = born_boot_ns,
	};

	submit_process(&event);
}

static __always_inline void send_title(struct kernel *k, u32 pid, u64 mm)
{
	struct process_event event = {
		.kind = EVENT_TITLED, .pid = pid, .at_ns = bpf_ktime_get_ns()};

	/* php-fpm writes its title over argv: sapi/fpm/fpm/fpm_env.c. */
	read_user(event.title, sizeof(event.title), kernel_u64(mm + k->mm_arg_start));
	submit_process(&event);
}

/* Sends what was freed last of the blocks of one earlier request, and in one way, if there is anything. Almost the
 * same is in native.bpf.c: bcc compiles no map calls in headers. */
static __always_inline void send_release(struct native_book *b, u32 pid)
{
	struct release_event event = {
		.kind = EVENT_RELEASED,
		.pid = pid,
		.owner_started_ns = b->released_owner,
		.freed_by_started_ns = b->request,
		.bytes = b->released_bytes,
		.blocks = b->released_blocks,
		.resized = b->released_resized,
	};

	if (!event.blocks)
		return;
	b->released_blocks = 0;
	b->released_bytes = 0;
	if (events.ringbuf_output(&event, sizeof(event), NO_WAKEUP))
		count_lost(LOST_RELEASES);
}

static __always_inline void start_native(struct worker *w, u32 pid)
{
	struct native_book *book = native_books.lookup(&pid);
	s64 between = 0, unsure = 0;
	u32 zero = 0;
	u64 *owners;

	if (!book) {
		w->native_link = 0;
		w->request.flags |= REQUEST_NATIVE_NOT_COUNTED;
		return;
	}
	if (w->native_link == book->link) {
		between = w->native_before.between_bytes;
		unsure = w->native_before.unsure;
	}
	if (book->request || book->sums.unsure != unsure)
		w->request.flags |= REQUEST_NATIVE_BETWEEN_NOT_COUNTED;
	/* The worker goes on: it has not freed that because it ends. */
	send_release(book, pid);
	owners = owners_noted.lookup(&zero);
	if (owners)
		book->owners_before = *owners;
	book->request = w->request.started_ns;
	book->thread = bpf_get_current_pid_tgid();
	book->resizing = 0;
	book->aligning = 0;
	w->native_link = book->link;
	w->native_before = book->sums;
	w->native_before.between_bytes = between;
}

/* What comes from here on comes between this request and the next. */
static __always_inline void begin_between(struct worker *w, struct native_book *book)
{
	w->native_link = book->link;
	w->native_before = book->sums;
}

/* What the request allocated and freed; and what it mapped, which needs no probes. */
static __always_inline void end_native(struct worker *w, u32 pid, s64 data_bytes, s64 page)
{
	struct native_book *book = native_books.lookup(&pid);
	struct native_sums *before = &w->native_before;
	struct request *r = &w->request;
	s64 arena;

	r->native_mapped_bytes =
		data_bytes - r->brk_bytes - (r->zend_real_after - r->zend_real_before);
	/* Another link: the worker was unlinked, and linked again. */
	if (!book || book->link != w->native_link) {
		r->flags |= REQUEST_NATIVE_NOT_COUNTED;
		if (book)
			begin_between(w, book);
		return;
	}
	send_release(book, pid);
	book->request = 0;
	book->ended++;
	if (book->sums.unsure != before->unsure)
		r->flags |= REQUEST_NATIVE_NOT_COUNTED;
	r->native_alloc_bytes = book->sums.alloc_bytes - before->alloc_bytes;
	r->native_alloc_calls = book->sums.alloc_calls - before->alloc_calls;
	r->native_free_bytes = book->sums.free_bytes - before->free_bytes;
	r->native_free_calls = book->sums.free_calls - before->free_calls;
	r->native_freed_earlier = book->sums.freed_earlier - before->freed_earlier;
	r->native_mapped_bytes -= book->sums.mapped_bytes - before->mapped_bytes;
	arena = book->sums.arena_bytes - before->arena_bytes;
	/* It grew by the request's own blocks: what the request freed of others had room there before. */
	if (r->native_mapped_bytes > 0)
		arena += book->sums.arena_freed_earlier - before->arena_freed_earlier;
	r->native_mapped_bytes -= of_the_arenas(r->native_mapped_bytes, arena, page);
	r->native_between_bytes = book->sums.between_bytes - before->between_bytes;
	begin_between(w, book);
}

int on_startup(struct pt_regs *ctx)
{
	struct worker *w = this_worker();
	struct kernel *k = the_kernel();
	u64 task, mm, sapi = 0, table = 0;
	struct rss rss = {};
	struct request *r;
	struct php_binary *php;

	if (!w || !k)
		return 0;
	php = php_binaries.lookup(&w->binary);
	if (!php)
		return 0;
	r = &w->request;
	task = bpf_get_current_task();
	mm = kernel_u64(task + k->task_mm);

	if (w->in_request) {
		/* Its end was missed: when tracing ends, the probe on the end may be closed first. */
		r->flags |= REQUEST_END_NOT_SEEN | REQUEST_DETACHED;
		r->ended_ns = bpf_ktime_get_ns();
		submit(w);
	}
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = EVENT_REQUEST;
	r->pid = bpf_get_current_pid_tgid() >> 32;
	r->started_ns = bpf_ktime_get_ns();
	r->flags = REQUEST_TEARDOWN_NOT_SEEN | REQUEST_SCRIPT_END_NOT_SEEN;
	if (w->forked_by) {
		send_birth(r->pid, w->forked_by,
			   k->task_start_boottime ? kernel_u64(task + k->task_start_boottime) : 0);
		w->forked_by = 0;
	}
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
		r->flags |= REQUEST_ZEND_HEAP_UNKNOWN;
	if (!php->known)
		r->flags |= REQUEST_PHP_LAYOUT_UNKNOWN;
	if (php->sapi_globals) {
		sapi = w->bias + php->sapi_globals;
		/* SG(server_context) is the first member, and the fcgi_request under php-fpm and php-cgi. */
		if (php->fcgi_env)
			table = user_u64(sapi);
		if (table)
			table += php->fcgi_env;
	}
	start_native(w, r->pid);
	w->data_before = kernel_u64(mm + k->mm_data_vm);
	read_script(w, php, table, sapi);
	read_uri(w, php, table, sapi);
	read_method(w, php, table, sapi);

	w->cpu_before_ns = kernel_u64(task + k->task_sum_exec_runtime);
	w->minor_before = kernel_u64(task + k->task_min_flt);
	w->major_before = kernel_u64(task + k->task_maj_flt);
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
	struct php_binary *php;

	if (!w)
		return 0;
	w->request.flags |= REQUEST_EXITED;
	if (w->request.flags & REQUEST_SCRIPT_END_NOT_SEEN)
		return 0;
	/* exit(255) of a shutdown function: with an earlier request's error, the status would show one of this. */
	php = php_binaries.lookup(&w->binary);
	if (php && php->known && last_error_is_fatal(w, php))
		w->stale_error = 1;
	return 0;
}

/* Entry of php_request_shutdown(): the script has ended, nothing has been freed. */
int on_script_end(struct pt_regs *ctx)
{
	struct worker *w = this_request();
	struct php_binary *php;

	if (!w)
		return 0;
	php = php_binaries.lookup(&w->binary);
	if (!php)
		return 0;
	w->request.flags &= ~REQUEST_SCRIPT_END_NOT_SEEN;
	if (w->heap)
		w->request.zend_used_end = user_u64(w->heap + php->heap_size);
	if (!php->known)
		return 0;
	w->request.memory_limit = user_u64(w->bias + php->core_globals + php->pg_memory_limit);
	w->stale_error = ended_by_error(w, php);
	if (w->stale_error && has_message(w, php))
		w->request.flags |= REQUEST_FATAL;
	return 0;
}

/*
 * Entry of php_output_deactivate(): no PHP code runs any more in this request, and its last error is still
 * there. Needed where an earlier request's error never goes away: see ended_by_error().
 */
int on_output_end(struct pt_regs *ctx)
{
	struct worker *w = this_request();
	struct php_binary *php;

	if (!w)
		return 0;
	php = php_binaries.lookup(&w->binary);
	if (php && php->known && ended_by_error(w, php) && has_message(w, php))
		w->request.flags |= REQUEST_FATAL;
	return 0;
}

/* Entry of zend_mm_shutdown(heap, ...): peaks are final, and are zeroed inside. */
int on_teardown(struct pt_regs *ctx)
{
	struct worker *w = this_request();
	struct php_binary *php;

	if (!w)
		return 0;
	php = php_binaries.lookup(&w->binary);
	if (!php)
		return 0;
	w->request.flags &= ~REQUEST_TEARDOWN_NOT_SEEN;
	if (w->heap) {
		w->request.zend_peak = user_u64(w->heap + php->heap_peak);
		w->request.zend_real_peak = user_u64(w->heap + php->heap_real_peak);
		w->request.zend_real_end = user_u64(w->heap + php->heap_real_size);
	}
	if (php->known) {
		read_user(&w->request.status, 4,
			  w->bias + php->sapi_globals + php->sg_response_code);
		/* A shutdown function or destructor may have failed since. */
		if (!w->stale_error && ended_by_error(w, php))
			w->request.flags |= REQUEST_FATAL;
	}
	w->request.anon_end = sample_anon(w);
	return 0;
}

/* The end of php_request_shutdown(): Zend has freed what it frees. */
int on_end(struct pt_regs *ctx)
{
	struct worker *w = this_worker();
	struct kernel *k = the_kernel();
	struct native_book *book;
	struct php_binary *php;
	struct request *r;
	u64 task, mm;

	if (!w || !k)
		return 0;
	r = &w->request;
	task = bpf_get_current_task();
	mm = kernel_u64(task + k->task_mm);
	if (!w->in_request) {
		/* A fork that a worker made in mid-request ends a copy of that request. */
		if (w->requests || w->forked_by)
			return 0;
		__builtin_memset(r, 0, sizeof(*r));
		r->kind = EVENT_REQUEST;
		r->pid = bpf_get_current_pid_tgid() >> 32;
		r->flags = REQUEST_START_NOT_SEEN;
		r->ended_ns = bpf_ktime_get_ns();
		sample_after(r, k, task, mm);
		w->requests = 1;
		r->nth = 1;
		book = native_books.lookup(&r->pid);
		if (book)
			begin_between(w, book);
		submit(w);
		return 0;
	}
	php = php_binaries.lookup(&w->binary);
	if (!php)
		return 0;
	sample_after(r, k, task, mm);
	r->brk_bytes = kernel_u64(mm + k->mm_brk) - w->brk_before;
	if (w->heap)
		r->zend_real_after = user_u64(w->heap + php->heap_real_size);
	end_native(w, r->pid, (s64)(kernel_u64(mm + k->mm_data_vm) - w->data_before) * k->page_size,
		   k->page_size);
	close_request(w, k, task);
	submit(w);
	return 0;
}

/*
 * The four below sit on the conditional jump behind the `syscall` instruction in libc's wrappers:
 * the result and the arguments are still in registers there.
 */
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
	struct worker *w = request_counted(CALLS_IN_LIBC);

	if (w && !failed(PT_REGS_RC(ctx)))
		count_call(w, PT_REGS_PARM2(ctx), 0);
	return 0;
}

int on_munmap(struct pt_regs *ctx)
{
	struct worker *w = request_counted(CALLS_IN_LIBC);

	if (w && !failed(PT_REGS_RC(ctx)))
		count_call(w, 0, PT_REGS_PARM2(ctx));
	return 0;
}

int on_mremap(struct pt_regs *ctx)
{
	struct worker *w = request_counted(CALLS_IN_LIBC);

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
	struct worker *w = request_counted(CALLS_IN_LIBC);

	if (w)
		count_brk(w);
	return 0;
}

/*
 * The fallback where libc's wrappers have another form: every system call of every process passes
 * here. TP_PROTO(struct pt_regs *regs, long ret): include/trace/events/syscalls.h
 */
int on_syscall_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs regs;
	u64 number, from = ctx->args[0];
	struct worker *w;

	number = kernel_u64(from + offsetof(struct pt_regs, REG_SYSCALL_NUMBER));
	if (number != SYS_MMAP && number != SYS_MUNMAP && number != SYS_BRK && number != SYS_MREMAP)
		return 0;
	w = request_counted(CALLS_IN_KERNEL);
	if (!w || failed(ctx->args[1]) || bpf_probe_read_kernel(&regs, sizeof(regs), (void *)from))
		return 0;
	if (number == SYS_MMAP)
		count_call(w, regs.REG_SYSCALL_ARG2, 0);
	else if (number == SYS_MUNMAP)
		count_call(w, 0, regs.REG_SYSCALL_ARG2);
	else if (number == SYS_MREMAP)
		count_call(w, regs.REG_SYSCALL_ARG3, regs.REG_SYSCALL_ARG2);
	else
		count_brk(w);
	return 0;
}

/*
 * On task:task_rename, which hardly any process ever fires; the loader does, by renaming itself to its
 * own name, and is then measured.
 * TP_PROTO(struct task_struct *task, const char *comm): include/trace/events/task.h
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
	u64 parent = ctx->args[0], child = ctx->args[1];
	struct kernel *k = the_kernel();
	struct worker *forker, *born;
	u32 zero = 0, parent_pid, pid;

	if (!k)
		return 0;
	parent_pid = kernel_u32(parent + k->task_tgid);
	forker = workers.lookup(&parent_pid);
	if (!forker)
		return 0;
	pid = kernel_u32(child + k->task_tgid);
	if (pid != kernel_u32(child + k->task_pid))
		return 0;
	/* A worker forks none before its first request: this is a master that has daemonized itself. */
	if (forker->role == ROLE_WORKER && !forker->titled && !forker->requests &&
	    !forker->forked_by)
		forker->role = ROLE_MASTER;
	born = blank_worker.lookup(&zero);
	if (!born)
		return 0;
	workers.update(&pid, born);
	born = workers.lookup(&pid);
	if (!born) {
		count_lost(LOST_WORKERS);
		return 0;
	}
	born->binary = forker->binary;
	born->role = ROLE_WORKER;
	born->calls = forker->calls;
	if (!(forker->role & ROLE_MASTER)) {
		/* Most become another program, or only work: what is sent waits until it serves a request. */
		born->forked_by = forker->forked_by ? forker->forked_by : parent_pid;
		if (forker->forked_by || forker->in_request)
			born->request.started_ns = forker->request.started_ns;
		return 0;
	}
	send_birth(pid, parent_pid,
		   k->task_start_boottime ? kernel_u64(child + k->task_start_boottime) : 0);
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
	if (w->forked_by) {
		workers.delete(&event.pid);
		return 0;
	}
	if (w->role & ROLE_WORKER) {
		event.kind = EVENT_DIED;
		event.exit_code = REPLACED;
		if (w->in_request) {
			w->request.flags |= REQUEST_END_NOT_SEEN;
			w->request.ended_ns = event.at_ns;
			submit(w);
		}
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
	if (w->forked_by) {
		struct fork_event fork = {
			.kind = EVENT_FORKED,
			.pid = event.pid,
			.parent_pid = w->forked_by,
			.request_started_ns = w->request.started_ns,
			.ended_ns = bpf_ktime_get_ns(),
		};

		if (events.ringbuf_output(&fork, sizeof(fork), NO_WAKEUP))
			count_lost(LOST_PROCESS_EVENTS);
		workers.delete(&event.pid);
		return 0;
	}
	task = bpf_get_current_task();
	event.exit_code = kernel_u32(task + k->task_exit_code);
	event.at_ns = bpf_ktime_get_ns();
	if (w->in_request) {
		/* Since 6.16 the memory is still there; before, there is nothing left to sample. */
		sample_anon(w);
		close_request(w, k, task);
		w->request.flags |= REQUEST_END_NOT_SEEN;
		w->request.exit_code = event.exit_code;
		submit(w);
	}
	submit_process(&event);
	workers.delete(&event.pid);
	native_books.delete(&event.pid);
	return 0;
}
