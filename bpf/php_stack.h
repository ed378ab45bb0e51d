/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Reads of PHP's call stack. No maps, no policy.
 *
 * Offsets that are constants here are the same from PHP 7.1 to 8.6; the others are in struct
 * stack_layout. Everything read is the worker's, and untrusted.
 *
 * tracer/backends/ptrace/php_stack.py walks the same stack; its Walker has in walk() what send_stack()
 * of growth.bpf.c does, in _frame() fill_frame(), key_of() and look_through(), in function()
 * function_id(), in _line() line_of(), in _string() read_string(). Change both.
 */
#ifndef PHPTRACE_PHP_STACK_H
#define PHPTRACE_PHP_STACK_H

#include "growth_events.h"
#include "common.h"
#include "read.h"

/* zend_string: Zend/zend_types.h */
#define STRING_LEN 16
#define STRING_VAL 24
#define STRING_SANE (1 << 20)
/* zend_class_entry: Zend/zend.h */
#define CLASS_NAME 8
/* zend_op: Zend/zend_compile.h */
#define OP_LINENO 24
#define OP_SIZE 32
#define OPS_SANE (1 << 22)
/* Zend/zend_types.h */
#define IS_OBJECT 8

/* zend_execute_data, of one call: Zend/zend_compile.h */
struct execute_data {
	u64 opline;
	u64 call;
	u64 return_value;
	u64 function;
	u64 this_value;
	u32 this_type; /* This.u1.type_info: also what kind of call it is */
	u32 this_extra;
	u64 previous;
};

/* zend_function_common, of which zend_op_array is an extension: Zend/zend_compile.h */
struct function_head {
	u8 type; /* enum function_type */
	u8 arg_flags[3];
	u32 fn_flags;
	u64 name;
	u64 scope;
};

/* zend_op_array.filename and what follows it: Zend/zend_compile.h */
struct op_array_source {
	u64 file;
	u32 line_start;
	u32 line_end;
};

/*
 * A placeholder: the generator that a `yield from` delegates to runs in its stead, and its frame is
 * found through the object. Replaces opline and function by that frame's; `previous` stays.
 */
static __always_inline void look_through(struct stack_layout *layout, struct execute_data *call)
{
	u64 inner;

	if (call->function || (u8)call->this_type != IS_OBJECT)
		return;
	inner = user_u64(call->this_value + layout->generator_execute_data);
	if (inner) {
		call->opline = user_u64(inner + offsetof(struct execute_data, opline));
		call->function = user_u64(inner + offsetof(struct execute_data, function));
	}
}

static __always_inline u64 mixed(u64 hash, u64 a, u64 b)
{
	hash = (hash ^ a) * 0x9E3779B97F4A7C15ULL;
	hash = (hash ^ (hash >> 29) ^ b) * 0xBF58476D1CE4E5B9ULL;
	return hash ^ (hash >> 32);
}

/* The line of an opline; 0 if it is not one of the function's. */
static __always_inline u32 line_of(struct stack_layout *layout, u64 function, u64 opline)
{
	u64 first = user_u64(function + layout->opcodes);
	u32 count = 0, line = 0;

	read_user(&count, sizeof(count), function + layout->last);
	if (!first || count > OPS_SANE || opline < first || opline >= first + (u64)count * OP_SIZE)
		return 0;
	read_user(&line, sizeof(line), opline + OP_LINENO);
	return line;
}

/*
 * Tells the function of a call from another that was at its address before it, in the same request:
 * closures are freed, a file's own code too. Bound to another class or object, a closure differs in its
 * scope alone.
 */
static __always_inline u64 identity(struct stack_layout *layout, u64 function)
{
	struct function_head head = {};
	struct op_array_source source = {};

	read_user(&head, sizeof(head), function);
	if (head.type != FUNCTION_INTERNAL) /* such as strlen(...), which has no file */
		read_user(&source, sizeof(source), function + layout->filename);
	return mixed(head.name ^ ((u64)source.line_start << 32), head.scope, source.file);
}

/*
 * A hash of the stack from the call at `at`, at one read a frame. Functions and oplines are known
 * by their addresses, which hold for a request. Calls whose function may be freed within the request
 * (`volatile_calls`) also add an identity. `top` is of the innermost frame; it is kept in map memory so
 * that the verifier does not track its value (Linux 6.18): in registers, only half the depth loads.
 */
static __always_inline u64 hash_of(struct stack_layout *layout, u64 at, struct top_frame *top)
{
	u64 hash = 0x243F6A8885A308D3ULL;
	struct execute_data call;
	int i;

	for (i = 0; i < DEPTH_MAX; i++) {
		if (!at)
			break;
		if (read_user(&call, sizeof(call), at)) {
			hash = mixed(hash, 1, at);
			break;
		}
		at = call.previous;
		look_through(layout, &call);
		if (i == 0 && top->known)
			call.opline = top->instead;
		hash = mixed(hash, call.function, call.opline);
		if (call.this_type & layout->volatile_calls)
			hash ^= identity(layout, call.function);
	}
	hash = mixed(hash, at != 0, DEPTH_MAX);
	return hash < HASHES_RESERVED ? hash + HASHES_RESERVED : hash;
}

/*
 * Copies a zend_string, NUL-terminated; returns 0, or -1 if it is malformed. If it has `size` bytes or
 * more, copies its beginning, or with `tail` its end, and sets `if_cut` in *flags.
 */
static __always_inline int read_string(char *to, u32 size, u64 string, bool tail, u32 *flags,
				       u32 if_cut)
{
	u64 length = 0, from = string + STRING_VAL;
	int copied;

	to[0] = 0;
	if (read_user(&length, sizeof(length), string + STRING_LEN) || length > STRING_SANE)
		return -1;
	if (length >= size && tail)
		from += length - size + 1;
	copied = read_user_text(to, size, from);
	if (length >= size && copied == size)
		*flags |= if_cut;
	/* A NUL inside shortens it, as in `class@anonymous`; it never ends later than it says. */
	return copied < 0 || copied > length + 1 ? -1 : 0;
}

#endif
