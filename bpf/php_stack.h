/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Reads of PHP's call stack. No maps, no policy.
 *
 * Offsets that are constants here are the same from PHP 7.1 to 8.6; the others are in struct
 * stack_layout. Everything read is the worker's, and may be anything.
 */
#ifndef PHPTRACE_FRAMES_H
#define PHPTRACE_FRAMES_H

#include "memory.h"
#include "growth_events.h"

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

/* zend_execute_data: Zend/zend_compile.h */
struct call {
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

/* zend_op_array.filename and what follows it */
struct op_array_place {
	u64 file;
	u32 line_start;
	u32 line_end;
};

/*
 * A placeholder: the generator that a `yield from` delegates to runs in its stead, and its frame is
 * found through the object. Fills in that frame; `previous` stays.
 */
static __always_inline void look_through(struct stack_layout *l, struct call *c)
{
	u64 inner;

	if (c->function || (u8)c->this_type != IS_OBJECT)
		return;
	inner = user_u64(c->this_value + l->generator_execute_data);
	if (inner) {
		c->opline = user_u64(inner);
		c->function = user_u64(inner + __builtin_offsetof(struct call, function));
	}
}

static __always_inline u64 mixed(u64 h, u64 a, u64 b)
{
	h = (h ^ a) * 0x9E3779B97F4A7C15ULL;
	h = (h ^ (h >> 29) ^ b) * 0xBF58476D1CE4E5B9ULL;
	return h ^ (h >> 32);
}

/* The line of an opline, if that is one of the function's; 0 otherwise. */
static __always_inline u32 line_of(struct stack_layout *l, u64 function, u64 opline)
{
	u64 first = user_u64(function + l->opcodes);
	u32 count = 0, line = 0;

	read_user(&count, sizeof(count), function + l->last);
	if (!first || count > OPS_SANE || opline < first || opline >= first + (u64)count * OP_SIZE)
		return 0;
	read_user(&line, sizeof(line), opline + OP_LINENO);
	return line;
}

/*
 * What tells the function of a call from another that was at its address before it, in the same
 * request: closures are freed, a file's own code too. Bound to another class or object, a closure
 * differs in its scope alone.
 */
static __always_inline u64 identity(struct stack_layout *l, u64 function)
{
	struct function_head head = {};
	struct op_array_place place = {};

	read_user(&head, sizeof(head), function);
	if (head.type != FUNCTION_INTERNAL) /* such as strlen(...), which has no file */
		read_user(&place, sizeof(place), function + l->filename);
	return mixed(head.name ^ ((u64)place.line_start << 32), head.scope, place.file);
}

/*
 * A hash of the stack, at one read a frame. Functions and oplines are told apart by their addresses,
 * which hold for a request; except for calls that may be freed within it (`volatile_calls`), which
 * have an identity besides. `top` is of the innermost frame; it is in a map, where the verifier does
 * not follow it: in registers it cost half the depth.
 */
static __always_inline u64 hash_of(struct stack_layout *l, u64 call, struct top_frame *top)
{
	u64 h = 0x243F6A8885A308D3ULL;
	struct call c;
	int i;

	for (i = 0; i < DEPTH_MAX; i++) {
		if (!call)
			break;
		if (read_user(&c, sizeof(c), call)) {
			h = mixed(h, 1, call);
			break;
		}
		call = c.previous;
		look_through(l, &c);
		if (i == 0 && top->known)
			c.opline = top->instead;
		h = mixed(h, c.function, c.opline);
		if (c.this_type & l->volatile_calls)
			h ^= identity(l, c.function);
	}
	h = mixed(h, call != 0, DEPTH_MAX);
	return h < HASHES_RESERVED ? h + HASHES_RESERVED : h;
}

/*
 * Copies a zend_string; returns 0, or -1 if it is none. At most `size` bytes with the NUL: the
 * beginning, or with `tail` the end; `if_cut` is then set in *flags.
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
