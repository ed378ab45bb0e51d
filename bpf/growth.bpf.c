// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Which PHP call stack a worker's growth belongs to. Loaded only where stacks are asked for.
 *
 * Two phases: each event hashes the stack, at one read a frame, and adds its bytes to that hash. Only
 * if a hash is new in its request is the stack walked again and sent; before it, once a request, the
 * names of its functions. So names are read while they are valid: without opcache the next request
 * puts another function at the same address.
 *
 *   on_fault           page faults, one in `every`     METRIC_RSS or METRIC_NATIVE, added up in slots
 *   on_clock           CPU clock, `hz` a second        METRIC_ZEND, added up in slots
 *   on_mmap … on_brk   behind libc's system calls      one record a call
 *   on_block           malloc's and its like's return  an entry in held_blocks, for blocks that are sampled
 *   on_end, on_exit    end of a request, of a worker   send what the slots hold
 *
 * Each: enter() filters and fills in the context, stack_now() hashes and sends, add() or send_call()
 * takes the bytes, leave().
 */
#include <uapi/linux/ptrace.h>
#include <uapi/linux/bpf_perf_event.h>
#include "request_events.h"
#include "growth_events.h"
#include "arch.h"
#include "common.h"
#include "read.h"
#include "php_stack.h"
#include "zend_chunks.h"

/* Keys of the stacks and functions that were sent. `request` is its start: no two requests share it. */
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

/* The loader puts the map of request.bpf.c in the place of this one. */
BPF_HASH(workers, u32, struct worker, WORKERS_MAX);
BPF_HASH(worker_stacks, u32, struct worker_stacks, WORKERS_MAX);
BPF_ARRAY(blank_stacks, struct worker_stacks, 1);
BPF_ARRAY(stack_layouts, struct stack_layout, PHP_BINARIES_MAX);
BPF_ARRAY(sampling_config, struct sampling_config, 1);
BPF_ARRAY(lost_stacks, u64, LOST_STACK_KINDS);
BPF_TABLE("lru_hash", struct stack_key, u32, sent_stacks, 16384);
BPF_TABLE("lru_hash", struct function_key, u64, sent_functions, 65536);
BPF_RINGBUF_OUTPUT(stack_events, RING_PAGES);
/* Shared with native.bpf.c, which chooses the blocks, and forgets them when they are freed. */
BPF_ARRAY(block_config, struct block_config, 1);
BPF_HASH(allocating, u64, u64,
	 ALLOCATING_MAX); /* by thread: bytes of the block its call will return */
BPF_HASH(held_blocks, struct block_key, struct block, BLOCKS_MAX);

/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */

/* Where an event happened: in which request of which worker. */
struct event_context {
	struct worker *worker;
	struct worker_stacks *stacks; /* 0 in threads other than the worker's main one */
	struct stack_layout *layout;
	u32 pid;
	u32 nth;
};

static __always_inline void count_lost(u32 what)
{
	u64 *n = lost_stacks.lookup(&what);

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

/* Sends what the slots hold. */
static __always_inline void flush(u32 pid, struct worker_stacks *stacks)
{
	int i;

	if (!stacks->dirty)
		return;
	stacks->dirty = 0;
	for (i = 0; i < GROWTH_SLOTS; i++) {
		struct growth_slot *slot = &stacks->slots[i];

		if (slot->metric)
			send_growth(pid, stacks->nth, slot);
		slot->metric = 0;
	}
}

/*
 * True if the event is in a request of a traced worker, whose stacks can be read; then fills in
 * *context, and the caller ends with leave().
 *
 * `busy`: the clock samples in interrupt context, so it may come while another program runs on the same
 * worker_stacks. The one that interrupts finds `busy` set, and does nothing.
 */
static __always_inline bool enter(struct event_context *context)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 zero = 0;

	context->pid = id >> 32;
	context->stacks = 0;
	context->worker = workers.lookup(&context->pid);
	if (!context->worker || !(context->worker->role & ROLE_WORKER) ||
	    !context->worker->in_request)
		return false;
	context->nth = context->worker->request.nth;
	context->layout = stack_layouts.lookup(&context->worker->binary);
	if (!context->layout || !context->layout->current_execute_data)
		return false;
	if (context->pid != (u32)id)
		return true;
	context->stacks = worker_stacks.lookup(&context->pid);
	if (!context->stacks) {
		struct worker_stacks *blank = blank_stacks.lookup(&zero);

		if (blank)
			worker_stacks.update(&context->pid, blank);
		context->stacks = worker_stacks.lookup(&context->pid);
		if (!context->stacks) {
			count_lost(LOST_GROWTH);
			return false;
		}
	}
	if (context->stacks->busy)
		return false;
	*(volatile u32 *)&context->stacks->busy = 1;
	if (context->stacks->nth != context->nth) {
		flush(context->pid, context->stacks);
		context->stacks->nth = context->nth;
		context->stacks->zend_last = 0;
	}
	return true;
}

static __always_inline void leave(struct event_context *context)
{
	if (context->stacks)
		*(volatile u32 *)&context->stacks->busy = 0;
}

/* Adds bytes to a hash's slot; what another hash has in that slot is sent first. */
static __always_inline void add(struct event_context *context, u32 metric, u64 hash, s64 bytes)
{
	struct worker_stacks *stacks = context->stacks;
	struct growth_slot *slot;

	if (!stacks) {
		struct growth_slot alone = {
			.hash = HASH_THREAD, .bytes = bytes, .metric = metric, .samples = 1};

		send_growth(context->pid, context->nth, &alone);
		return;
	}
	slot = &stacks->slots[(hash + metric) & (GROWTH_SLOTS - 1)];
	if (slot->metric && (slot->hash != hash || slot->metric != metric)) {
		send_growth(context->pid, context->nth, slot);
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
	stacks->dirty = 1;
}

/* Fills in the key of a function; returns -1 if the function is malformed. */
static __always_inline int key_of(struct event_context *context, u64 function,
				  struct function_head *head, struct function_key *key)
{
	struct stack_layout *layout = context->layout;
	struct op_array_source source = {};

	key->name = head->name;
	key->scope = head->scope;
	key->request = context->worker->request.started_ns;
	key->pid = context->pid;
	if (head->type == FUNCTION_INTERNAL) {
		key->body = function;
		return 0;
	}
	if (head->type != FUNCTION_USER && head->type != FUNCTION_EVAL)
		return -1;
	key->body = user_u64(function + layout->opcodes);
	if (read_user(&source, sizeof(source), function + layout->filename) || !source.file)
		return -1;
	key->file = source.file;
	key->line_start = source.line_start;
	return 0;
}

/* The id of a function, whose names are sent first if they are new in this request; 0 if that failed. */
static __always_inline u64 function_id(struct event_context *context, struct function_head *head,
				       struct function_key *key)
{
	struct function_event *event = &context->stacks->function;
	u32 *flags = &context->stacks->stack.flags;
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
	event->pid = context->pid;
	event->nth = context->nth;
	context->stacks->functions++;
	id = context->stacks->functions;
	event->id = id;
	if (stack_events.ringbuf_output(event, sizeof(*event), NO_WAKEUP)) {
		*flags |= STACK_LOST;
		return 0;
	}
	sent_functions.update(key, &id);
	return id;
}

/* Fills in a frame of the stack that is being sent; sets the stack's flags if the frame is malformed or lost. */
static __always_inline void fill_frame(struct event_context *context, struct frame *frame,
				       struct execute_data *call, u32 known_line)
{
	u32 *flags = &context->stacks->stack.flags;
	struct function_key key = {};
	struct function_head head;

	frame->function = 0;
	frame->line = 0;
	if (!call->function)
		return;
	if (read_user(&head, sizeof(head), call->function) ||
	    key_of(context, call->function, &head, &key)) {
		*flags |= STACK_CORRUPT;
		return;
	}
	if (head.type == FUNCTION_INTERNAL) {
		if (!head.name) /* a fiber's fake function */
			return;
	} else if (known_line) {
		frame->line = known_line;
	} else {
		frame->line = line_of(context->layout, call->function, call->opline);
	}
	frame->function = function_id(context, &head, &key);
}

/*
 * Walks the stack from the call at `at` once more, and sends it; returns 0, or < 0 if it could not be
 * sent. Flags are kept in map memory, where the verifier does not track them: in registers they made
 * it see a million states (Linux 6.18).
 */
static __always_inline int send_stack(struct event_context *context, u64 at, u64 hash, u32 top_line)
{
	struct stack_event *event = &context->stacks->stack;
	u32 bytes, depth = 0;
	struct execute_data call;
	int i;

	event->flags = 0;
	for (i = 0; i < DEPTH_MAX; i++) {
		if (!at || event->flags)
			break;
		depth = i + 1;
		if (read_user(&call, sizeof(call), at)) {
			event->flags |= STACK_CORRUPT;
			event->frames[i].function = 0;
			break;
		}
		at = call.previous;
		look_through(context->layout, &call);
		fill_frame(context, &event->frames[i], &call, i == 0 ? top_line : 0);
	}
	if (event->flags & STACK_LOST)
		return -1;
	if (at && !event->flags)
		event->flags = STACK_TRUNCATED;
	event->kind = EVENT_STACK;
	event->pid = context->pid;
	event->nth = context->nth;
	event->hash = hash;
	event->depth = depth;
	bytes = offsetof(struct stack_event, frames) + depth * sizeof(struct frame);
	if (bytes > sizeof(*event)) /* never; for the verifier */
		bytes = sizeof(*event);
	return stack_events.ringbuf_output(event, bytes, NO_WAKEUP);
}

/*
 * Hash of the current PHP stack. If it is new in this request, the stack is sent first.
 *
 * `at_register` and `opline_register` are REG_EXECUTE_DATA and REG_OPLINE, 0 if the caller does not know
 * them: the interpreter writes the innermost frame's opline to memory only before it calls something
 * (Zend/zend_vm_opcodes.h: ZEND_VM_KIND_HYBRID). In a clock sample the opline in memory may be old; the
 * register has the right one if the other register says that the interpreter runs this very call.
 */
static __always_inline u64 stack_now(struct event_context *context, u64 at_register,
				     u64 opline_register)
{
	struct function_head head = {};
	struct stack_key key = {};
	u64 at, function, hash;
	bool internal = false;
	u32 line = 0, one = 1;

	if (!context->stacks)
		return HASH_THREAD;
	at = user_u64(context->worker->bias + context->layout->current_execute_data);
	if (!at)
		return HASH_NO_PHP;
	function = user_u64(at + offsetof(struct execute_data, function));
	if (function) {
		/*
		 * An internal function has no opline: the one in its frame was left by another call.
		 * It may be EG(trampoline), by which all methods of FFI are called: each has its name.
		 */
		read_user(&head, sizeof(head), function);
		internal = head.type == FUNCTION_INTERNAL;
		if (!internal && at_register == at)
			line = line_of(context->layout, function, opline_register);
	}
	context->stacks->top.instead = internal ? head.name : line;
	context->stacks->top.known = internal || line;
	hash = hash_of(context->layout, at, &context->stacks->top);
	key.hash = hash;
	key.request = context->worker->request.started_ns;
	key.pid = context->pid;
	if (sent_stacks.lookup(&key))
		return hash;
	if (send_stack(context, at, hash, line)) {
		count_lost(LOST_STACKS);
		return HASH_LOST;
	}
	sent_stacks.update(&key, &one);
	return hash;
}

/* perf's software event PAGE_FAULTS in a traced process: one in `every` page faults, user's and kernel's. */
int on_fault(struct bpf_perf_event_data *ctx)
{
	struct sampling_config *config;
	struct event_context context;
	u32 zero = 0, metric = METRIC_RSS;
	u64 hash;

	if (!enter(&context))
		return 0;
	config = sampling_config.lookup(&zero);
	if (config) {
		/* The stack first: a choice before it is a second state of all that the verifier sees in it. */
		hash = stack_now(&context, 0, 0);
		if (is_native(context.worker->heap, context.layout, ctx->addr))
			metric = METRIC_NATIVE;
		add(&context, metric, hash, config->fault_bytes);
	}
	leave(&context);
	return 0;
}

/* perf's software event CPU_CLOCK in a traced process: the change of Zend's heap since the last sample. */
int on_clock(struct bpf_perf_event_data *ctx)
{
	struct event_context context;
	s64 size, change;

	if (!enter(&context))
		return 0;
	if (context.stacks && context.worker->heap &&
	    context.worker->request.flags & REQUEST_SCRIPT_END_NOT_SEEN) {
		size = user_u64(context.worker->heap + context.layout->heap_size);
		change = size - context.stacks->zend_last;
		context.stacks->zend_last = size;
		if (change)
			add(&context, METRIC_ZEND,
			    stack_now(&context, ctx->regs.REG_EXECUTE_DATA, ctx->regs.REG_OPLINE),
			    change);
	}
	leave(&context);
	return 0;
}

static __always_inline void send_call(struct event_context *context,
				      struct memory_call_event *event)
{
	event->kind = EVENT_MEMORY_CALL;
	event->pid = context->pid;
	event->nth = context->nth;
	event->script_ended = !(context->worker->request.flags & REQUEST_SCRIPT_END_NOT_SEEN);
	if (stack_events.ringbuf_output(event, sizeof(*event), NO_WAKEUP))
		count_lost(LOST_GROWTH);
}

/* `where` is the place this program counts at: enum calls. */
static __always_inline void memory_call(u32 call, u32 where, u64 address, u64 bytes, u64 to,
					u64 to_bytes)
{
	struct memory_call_event event = {.call = call};
	struct event_context context;

	if (!enter(&context))
		return;
	if (context.worker->calls == where) {
		event.address = call == CALL_BRK ? context.worker->brk_before : address;
		event.bytes = bytes;
		event.to = to;
		event.to_bytes = to_bytes;
		if (call != CALL_MUNMAP)
			event.hash = stack_now(&context, 0, 0);
		send_call(&context, &event);
	}
	leave(&context);
}

/* These four sit where their twins of request.bpf.c do: behind the `syscall` instruction of libc's wrappers. */
int on_mmap(struct pt_regs *ctx)
{
	if (!failed(PT_REGS_RC(ctx)))
		memory_call(CALL_MMAP, CALLS_IN_LIBC, PT_REGS_RC(ctx), PT_REGS_PARM2(ctx), 0, 0);
	return 0;
}

int on_munmap(struct pt_regs *ctx)
{
	if (!failed(PT_REGS_RC(ctx)))
		memory_call(CALL_MUNMAP, CALLS_IN_LIBC, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), 0,
			    0);
	return 0;
}

int on_mremap(struct pt_regs *ctx)
{
	if (!failed(PT_REGS_RC(ctx)))
		memory_call(CALL_MREMAP, CALLS_IN_LIBC, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx),
			    PT_REGS_RC(ctx), PT_REGS_PARM3(ctx));
	return 0;
}

int on_brk(struct pt_regs *ctx)
{
	memory_call(CALL_BRK, CALLS_IN_LIBC, 0, 0, PT_REGS_RC(ctx), 0);
	return 0;
}

/* The fallback where libc's wrappers have another form, as in request.bpf.c. */
int on_syscall_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 from = ctx->args[0], result = ctx->args[1], number;
	u64 address, to = 0, to_bytes = 0;
	u32 call;

	number = kernel_u64(from + offsetof(struct pt_regs, REG_SYSCALL_NUMBER));
	if (number != SYS_MMAP && number != SYS_MUNMAP && number != SYS_BRK && number != SYS_MREMAP)
		return 0;
	if (failed(result))
		return 0;
	address = kernel_u64(from + offsetof(struct pt_regs, REG_SYSCALL_ARG1));
	if (number == SYS_MMAP) {
		call = CALL_MMAP;
		address = result;
	} else if (number == SYS_MUNMAP) {
		call = CALL_MUNMAP;
	} else {
		call = number == SYS_BRK ? CALL_BRK : CALL_MREMAP;
		to = result;
		to_bytes = kernel_u64(from + offsetof(struct pt_regs, REG_SYSCALL_ARG3));
	}
	memory_call(call, CALLS_IN_KERNEL, address,
		    kernel_u64(from + offsetof(struct pt_regs, REG_SYSCALL_ARG2)), to, to_bytes);
	return 0;
}

/*
 * The return of a function that allocates: if on_native() has sampled the block, notes where in PHP it was asked for.
 * Blocks that are allocated between two requests are left out.
 */
int on_block(struct pt_regs *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 *asked = allocating.lookup(&thread);
	struct event_context context;
	struct block_key key = {};
	struct block block = {};

	if (!asked)
		return 0;
	block.bytes = *asked;
	allocating.delete(&thread);
	key.address = PT_REGS_RC(ctx);
	if (!key.address || !enter(&context))
		return 0;
	key.pid = context.pid;
	block.nth = context.nth;
	block.hash = stack_now(&context, 0, 0);
	if (held_blocks.update(&key, &block))
		count_lost(LOST_BLOCKS);
	leave(&context);
	return 0;
}

/* The end of php_request_shutdown(): sends what the slots hold of the request. */
int on_end(struct pt_regs *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct worker_stacks *stacks = worker_stacks.lookup(&pid);

	if (stacks) {
		*(volatile u32 *)&stacks->busy = 1;
		flush(pid, stacks);
		*(volatile u32 *)&stacks->busy = 0;
	}
	return 0;
}

/* The end of a worker. */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 pid = id >> 32;
	struct worker_stacks *stacks;

	if (pid != (u32)id)
		return 0;
	allocating.delete(&id);
	stacks = worker_stacks.lookup(&pid);
	if (!stacks)
		return 0;
	*(volatile u32 *)&stacks->busy = 1;
	flush(pid, stacks);
	worker_stacks.delete(&pid);
	return 0;
}
