// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Which PHP call stack a worker's growth belongs to. Loaded only where stacks are asked for.
 *
 * Two phases: each event hashes the stack, at one read a frame, and adds its bytes to that hash; only
 * a hash that is new in its request is walked again, and its functions' names are sent, once a
 * request, too. So names are read while they are valid: without opcache the next request puts
 * another function at the same address.
 */
#include <uapi/linux/ptrace.h>
#include <uapi/linux/bpf_perf_event.h>
#include "request_events.h"
#include "memory.h"
#include "growth_events.h"
#include "php_stack.h"

/* A stack that was sent; and a function. `request` is the start of the request: no two are alike. */
struct stack_key {
	u64 hash;
	u64 request;
	u32 pid;
	u32 pad;
};

struct function_key {
	u64 body; /* op_array.opcodes, which closures and trait methods share; zend_function if internal */
	u64 name;
	u64 scope;
	u64 file;
	u64 request;
	u32 line_start;
	u32 pid;
};

/* That of request.bpf.c: the loader puts it in the place of this one. */
BPF_HASH(workers, u32, struct worker, WORKERS_MAX);
BPF_HASH(worker_stacks, u32, struct worker_stacks, WORKERS_MAX);
BPF_ARRAY(blank, struct worker_stacks, 1);
BPF_ARRAY(layouts, struct stack_layout, PHP_BINARIES_MAX);
BPF_ARRAY(sampling_config, struct sampling_config, 1);
BPF_ARRAY(stacks_lost, u64, LOST_STACK_KINDS);
BPF_TABLE("lru_hash", struct stack_key, u32, sent_stacks, 16384);
BPF_TABLE("lru_hash", struct function_key, u64, sent_functions, 65536);
BPF_RINGBUF_OUTPUT(stack_events, RING_PAGES);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

/* BPF_RB_NO_WAKEUP: the reader comes by on a timer. */
#define NO_WAKEUP 1
#define MAX_ERRNO 4095
#define offsetof(type, member) __builtin_offsetof(type, member)

/* Where an event happened. */
struct event_context {
	struct worker *worker;
	struct worker_stacks *stacks; /* 0 in a thread that is not the worker's main one */
	struct stack_layout *layout;
	u32 pid;
	u32 nth;
};

static __always_inline void count_lost(u32 what)
{
	u64 *n = stacks_lost.lookup(&what);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void send_growth(u32 pid, u32 nth, struct growth_slot *slot)
{
	struct growth_event event = {.kind = EVENT_GROWTH, .pid = pid, .nth = nth};

	event.metric = slot->metric;
	event.hash = slot->hash;
	event.bytes = slot->bytes;
	event.samples = slot->samples;
	if (stack_events.ringbuf_output(&event, sizeof(event), NO_WAKEUP))
		count_lost(LOST_GROWTH);
}

static __always_inline void flush(u32 pid, struct worker_stacks *s)
{
	int i;

	if (!s->dirty)
		return;
	s->dirty = 0;
	for (i = 0; i < GROWTH_SLOTS; i++) {
		struct growth_slot *slot = &s->slots[i];

		if (slot->metric)
			send_growth(pid, s->nth, slot);
		slot->metric = 0;
	}
}

/* Whether it happened in a request of a worker of ours, and where. */
static __always_inline bool enter(struct event_context *at)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 zero = 0;

	at->pid = id >> 32;
	at->stacks = 0;
	at->worker = workers.lookup(&at->pid);
	if (!at->worker || at->worker->role != ROLE_WORKER || !at->worker->in_request)
		return false;
	at->nth = at->worker->request.nth;
	at->layout = layouts.lookup(&at->worker->binary);
	if (!at->layout || !at->layout->current_execute_data)
		return false;
	if (at->pid != (u32)id)
		return true;
	at->stacks = worker_stacks.lookup(&at->pid);
	if (!at->stacks) {
		struct worker_stacks *none = blank.lookup(&zero);

		if (none)
			worker_stacks.update(&at->pid, none);
		at->stacks = worker_stacks.lookup(&at->pid);
		if (!at->stacks) {
			count_lost(LOST_GROWTH);
			return false;
		}
	}
	if (at->stacks->busy)
		return false;
	*(volatile u32 *)&at->stacks->busy = 1;
	if (at->stacks->nth != at->nth) {
		flush(at->pid, at->stacks);
		at->stacks->nth = at->nth;
		at->stacks->zend_last = 0;
	}
	return true;
}

static __always_inline void leave(struct event_context *at)
{
	if (at->stacks)
		*(volatile u32 *)&at->stacks->busy = 0;
}

static __always_inline void add(struct event_context *at, u32 metric, u64 hash, s64 bytes)
{
	struct worker_stacks *s = at->stacks;
	struct growth_slot *slot;

	if (!s) {
		struct growth_slot alone = {
			.hash = HASH_THREAD, .bytes = bytes, .metric = metric, .samples = 1};

		send_growth(at->pid, at->nth, &alone);
		return;
	}
	slot = &s->slots[(hash + metric) & (GROWTH_SLOTS - 1)];
	if (slot->metric && (slot->hash != hash || slot->metric != metric)) {
		send_growth(at->pid, at->nth, slot);
		slot->metric = 0;
	}
	if (!slot->metric) {
		slot->hash = hash;
		slot->metric = metric;
		slot->bytes = 0;
		slot->samples = 0;
	}
	slot->bytes += bytes;
	slot->samples++;
	s->dirty = 1;
}

/* Where a function stands; -1 if it makes no sense. */
static __always_inline int key_of(struct event_context *at, u64 function,
				  struct function_head *head, struct function_key *key)
{
	struct stack_layout *l = at->layout;
	struct op_array_place place = {};

	key->name = head->name;
	key->scope = head->scope;
	key->request = at->worker->request.started_ns;
	key->pid = at->pid;
	if (head->type == FUNCTION_INTERNAL) {
		key->body = function;
		return 0;
	}
	if (head->type != FUNCTION_USER && head->type != FUNCTION_EVAL)
		return -1;
	key->body = user_u64(function + l->opcodes);
	if (read_user(&place, sizeof(place), function + l->filename) || !place.file)
		return -1;
	key->file = place.file;
	key->line_start = place.line_start;
	return 0;
}

/* The id of a function, whose names are sent if that was not yet done in this request; 0 if it has none. */
static __always_inline u64 function_id(struct event_context *at, struct function_head *head,
				       struct function_key *key)
{
	struct function_event *event = &at->stacks->function;
	u32 *flags = &at->stacks->stack.flags;
	u64 *known, id, class_name;
	int bad = 0;

	known = sent_functions.lookup(key);
	if (known)
		return *known;
	class_name = head->scope ? user_u64(head->scope + CLASS_NAME) : 0;
	event->type = head->type;
	event->line_start = key->line_start;
	event->flags = (head->name ? 0 : FUNCTION_NAMELESS) |
		       (class_name ? 0 : FUNCTION_CLASSLESS) | (key->file ? 0 : FUNCTION_FILELESS);
	if (head->name)
		bad |= read_string(event->name, NAME_MAX_BYTES, head->name, false, &event->flags,
				   FUNCTION_NAME_CUT);
	if (class_name)
		bad |= read_string(event->class_name, NAME_MAX_BYTES, class_name, false,
				   &event->flags, FUNCTION_CLASS_CUT);
	if (key->file)
		bad |= read_string(event->file, FILE_MAX_BYTES, key->file, true, &event->flags,
				   FUNCTION_FILE_CUT);
	if (bad) {
		*flags |= STACK_CORRUPT;
		return 0;
	}
	event->kind = EVENT_FUNCTION;
	event->pid = at->pid;
	event->nth = at->nth;
	at->stacks->functions++;
	id = at->stacks->functions;
	event->id = id;
	if (stack_events.ringbuf_output(event, sizeof(*event), NO_WAKEUP)) {
		*flags |= STACK_LOST;
		return 0;
	}
	sent_functions.update(key, &id);
	return id;
}

/* Fills in a frame of the stack that is being sent; what is wrong with it goes to the stack's flags. */
static __always_inline void fill_frame(struct event_context *at, struct frame *frame,
				       struct call *c, u32 known_line)
{
	u32 *flags = &at->stacks->stack.flags;
	struct function_key key = {};
	struct function_head head;

	frame->function = 0;
	frame->line = 0;
	if (!c->function)
		return;
	if (read_user(&head, sizeof(head), c->function) || key_of(at, c->function, &head, &key)) {
		*flags |= STACK_CORRUPT;
		return;
	}
	if (head.type == FUNCTION_INTERNAL) {
		if (!head.name) /* a fiber's fake function */
			return;
	} else if (known_line) {
		frame->line = known_line;
	} else {
		frame->line = line_of(at->layout, c->function, c->opline);
	}
	frame->function = function_id(at, &head, &key);
}

/*
 * Walks the stack once more, and sends it; -1 if that could not be done. Flags are kept in memory,
 * where the verifier does not follow them: in registers they made it see a million states.
 */
static __always_inline int send_stack(struct event_context *at, u64 call, u64 hash, u32 top_line)
{
	struct stack_event *event = &at->stacks->stack;
	u32 bytes, depth = 0;
	struct call c;
	int i;

	event->flags = 0;
	for (i = 0; i < DEPTH_MAX; i++) {
		if (!call || event->flags)
			break;
		depth = i + 1;
		if (read_user(&c, sizeof(c), call)) {
			event->flags |= STACK_CORRUPT;
			event->frames[i].function = 0;
			break;
		}
		call = c.previous;
		look_through(at->layout, &c);
		fill_frame(at, &event->frames[i], &c, i == 0 ? top_line : 0);
	}
	if (event->flags & STACK_LOST)
		return -1;
	if (call && !event->flags)
		event->flags = STACK_TRUNCATED;
	event->kind = EVENT_STACK;
	event->pid = at->pid;
	event->nth = at->nth;
	event->hash = hash;
	event->depth = depth;
	bytes = offsetof(struct stack_event, frames) + depth * sizeof(struct frame);
	if (bytes > sizeof(*event))
		bytes = sizeof(*event);
	return stack_events.ringbuf_output(event, bytes, NO_WAKEUP);
}

/*
 * The hash of what the worker's PHP is doing now, which user space knows, or will when it comes to
 * it. `opline_register` and `call_register` are r15 and r14, 0 if not to be heeded: the interpreter
 * writes the innermost frame's opline to memory only before it calls something (Zend/zend_vm_opcodes.h:
 * ZEND_VM_KIND_HYBRID).
 */
static __always_inline u64 stack_now(struct event_context *at, u64 call_register,
				     u64 opline_register)
{
	struct function_head head = {};
	struct stack_key key = {};
	u64 call, function, hash;
	bool internal = false;
	u32 line = 0, one = 1;

	if (!at->stacks)
		return HASH_THREAD;
	call = user_u64(at->worker->bias + at->layout->current_execute_data);
	if (!call)
		return HASH_NO_PHP;
	function = user_u64(call + offsetof(struct call, function));
	if (function) {
		/*
		 * An internal function has no opline: what stands there is left from another call.
		 * It may be EG(trampoline), by which all methods of FFI are called: each has its name.
		 */
		read_user(&head, sizeof(head), function);
		internal = head.type == FUNCTION_INTERNAL;
		if (!internal && call_register == call)
			line = line_of(at->layout, function, opline_register);
	}
	at->stacks->top.instead = internal ? head.name : line;
	at->stacks->top.known = internal || line;
	hash = hash_of(at->layout, call, &at->stacks->top);
	key.hash = hash;
	key.request = at->worker->request.started_ns;
	key.pid = at->pid;
	if (sent_stacks.lookup(&key))
		return hash;
	if (send_stack(at, call, hash, line)) {
		count_lost(LOST_STACKS);
		return HASH_LOST;
	}
	sent_stacks.update(&key, &one);
	return hash;
}

/* A sampled page fault of a watched process: perf's software event PAGE_FAULTS, user's and kernel's. */
int on_fault(struct bpf_perf_event_data *ctx)
{
	struct sampling_config *each;
	struct event_context at;
	u32 zero = 0;

	if (!enter(&at))
		return 0;
	each = sampling_config.lookup(&zero);
	if (each)
		add(&at, METRIC_RSS, stack_now(&at, 0, 0), each->fault_bytes);
	leave(&at);
	return 0;
}

/* perf's software event CPU_CLOCK, in a watched process: what has become of Zend's heap since the last. */
int on_clock(struct bpf_perf_event_data *ctx)
{
	struct event_context at;
	s64 size, change;

	if (!enter(&at))
		return 0;
	if (at.stacks && at.worker->heap &&
	    at.worker->request.flags & REQUEST_SCRIPT_END_NOT_SEEN) {
		size = user_u64(at.worker->heap + at.layout->heap_size);
		change = size - at.stacks->zend_last;
		at.stacks->zend_last = size;
		if (change)
			add(&at, METRIC_ZEND, stack_now(&at, ctx->regs.r14, ctx->regs.r15), change);
	}
	leave(&at);
	return 0;
}

static __always_inline bool failed(u64 result)
{
	return result >= (u64)-MAX_ERRNO;
}

static __always_inline void send_call(struct event_context *at, struct memory_call_event *event)
{
	event->kind = EVENT_MEMORY_CALL;
	event->pid = at->pid;
	event->nth = at->nth;
	event->script_ended = !(at->worker->request.flags & REQUEST_SCRIPT_END_NOT_SEEN);
	if (stack_events.ringbuf_output(event, sizeof(*event), NO_WAKEUP))
		count_lost(LOST_GROWTH);
}

static __always_inline void on_call(u32 call, u32 where, u64 address, u64 bytes, u64 to,
				    u64 to_bytes)
{
	struct memory_call_event event = {.call = call};
	struct event_context at;

	if (!enter(&at))
		return;
	if (at.worker->calls == where) {
		event.address = call == CALL_BRK ? at.worker->brk_before : address;
		event.bytes = bytes;
		event.to = to;
		event.to_bytes = to_bytes;
		if (call != CALL_MUNMAP)
			event.hash = stack_now(&at, 0, 0);
		send_call(&at, &event);
	}
	leave(&at);
}

/* As in request.bpf.c: behind the `syscall` instruction of libc's wrappers. */
int on_mmap(struct pt_regs *ctx)
{
	if (!failed(PT_REGS_RC(ctx)))
		on_call(CALL_MMAP, CALLS_IN_LIBC, PT_REGS_RC(ctx), PT_REGS_PARM2(ctx), 0, 0);
	return 0;
}

int on_munmap(struct pt_regs *ctx)
{
	if (!failed(PT_REGS_RC(ctx)))
		on_call(CALL_MUNMAP, CALLS_IN_LIBC, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), 0, 0);
	return 0;
}

int on_mremap(struct pt_regs *ctx)
{
	if (!failed(PT_REGS_RC(ctx)))
		on_call(CALL_MREMAP, CALLS_IN_LIBC, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx),
			PT_REGS_RC(ctx), PT_REGS_PARM3(ctx));
	return 0;
}

int on_brk(struct pt_regs *ctx)
{
	on_call(CALL_BRK, CALLS_IN_LIBC, 0, 0, PT_REGS_RC(ctx), 0);
	return 0;
}

/* arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18 */
#define SYS_MMAP 9
#define SYS_MUNMAP 11
#define SYS_BRK 12
#define SYS_MREMAP 25

/* The fallback, as in request.bpf.c. */
int on_syscall_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 from = ctx->args[0], result = ctx->args[1], number;
	u64 address, to = 0, to_bytes = 0;
	u32 call;

	number = kernel_u64(from + offsetof(struct pt_regs, orig_ax));
	if (number != SYS_MMAP && number != SYS_MUNMAP && number != SYS_BRK && number != SYS_MREMAP)
		return 0;
	if (failed(result))
		return 0;
	address = kernel_u64(from + offsetof(struct pt_regs, di));
	if (number == SYS_MMAP) {
		call = CALL_MMAP;
		address = result;
	} else if (number == SYS_MUNMAP) {
		call = CALL_MUNMAP;
	} else {
		call = number == SYS_BRK ? CALL_BRK : CALL_MREMAP;
		to = result;
		to_bytes = kernel_u64(from + offsetof(struct pt_regs, dx));
	}
	on_call(call, CALLS_IN_KERNEL, address, kernel_u64(from + offsetof(struct pt_regs, si)), to,
		to_bytes);
	return 0;
}

/* The end of php_request_shutdown(): what was summed up of the request goes out. */
int on_end(struct pt_regs *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct worker_stacks *s = worker_stacks.lookup(&pid);

	if (s) {
		*(volatile u32 *)&s->busy = 1;
		flush(pid, s);
		*(volatile u32 *)&s->busy = 0;
	}
	return 0;
}

/* The end of a worker. */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 pid = id >> 32;
	struct worker_stacks *s;

	if (pid != (u32)id)
		return 0;
	s = worker_stacks.lookup(&pid);
	if (!s)
		return 0;
	*(volatile u32 *)&s->busy = 1;
	flush(pid, s);
	worker_stacks.delete(&pid);
	return 0;
}
