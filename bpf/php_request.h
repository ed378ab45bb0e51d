/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Script, uri and method of a request, from PHP's FastCGI environment; from SG(request_info) where
 * that has none. No maps, no policy.
 */
#ifndef PHPTRACE_PHP_REQUEST_H
#define PHPTRACE_PHP_REQUEST_H

#include "request_events.h"
#include "read.h"

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

/* A name of up to 15 bytes as two zero-padded words, and its FCGI_HASH_FUNC. */
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
			/* For the verifier: names have at most 15 bytes; 16 would become 0 here. */
			if (!read_user(name, wanted->bytes & 15, b->name) &&
			    name[0] == wanted->low && name[1] == wanted->high)
				return true;
		}
		at = b->next;
	}
	return false;
}

/*
 * The length of a value of which `read` bytes up to a NUL were read, at most `limit`. PHP shortens a value in
 * place, with a NUL, and leaves its length in the bucket: SCRIPT_FILENAME from Apache loses "proxy:fcgi://HOST" and
 * what follows a "?", and is decoded (init_request_info(), sapi/fpm/fpm/fpm_main.c, PHP 8.2).
 */
static __always_inline u32 value_bytes(const struct bucket *b, u32 read, u32 limit)
{
	char next = 0;

	if (read < limit)
		return read;
	read_user(&next, sizeof(next), b->value + limit);
	return next && b->value_bytes > limit ? b->value_bytes : limit;
}

static __always_inline void read_script(struct worker *w, struct php_binary *php, u64 table,
					u64 sapi)
{
	const struct env_name script_filename = {
		.low = WORD('S', 'C', 'R', 'I', 'P', 'T', '_', 'F'),
		.high = WORD('I', 'L', 'E', 'N', 'A', 'M', 'E', 0),
		.bytes = 15,
		.hash = HASH('I', 'M', 'E', 15),
	};
	struct request *r = &w->request;
	struct bucket b = {};
	u64 text;
	int n;

	if (table && find_env(table, &script_filename, &b)) {
		n = read_user_text(w->strings, SCRIPT_MAX + 1, b.value);
		if (n > 0) {
			r->script_bytes = value_bytes(&b, n - 1, SCRIPT_MAX);
			r->script_stored = n - 1;
			return;
		}
	}
	text = sapi && php->known ? user_u64(sapi + php->sg_path_translated) : 0;
	n = text ? read_user_text(w->strings, SCRIPT_MAX, text) : 0;
	if (n > 1) {
		r->script_bytes = n - 1;
		r->script_stored = n - 1;
		r->flags |= REQUEST_SCRIPT_IS_PATH_TRANSLATED;
		return;
	}
	r->script_bytes = 0;
	r->script_stored = 0;
	r->flags |= REQUEST_NO_SCRIPT;
}

/* After read_script(): the uri is stored behind the script. */
static __always_inline void read_uri(struct worker *w, struct php_binary *php, u64 table, u64 sapi)
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
	u64 text;
	int n;

	if (offset > SCRIPT_MAX) /* never; for the verifier */
		return;
	if (table && find_env(table, &request_uri, &b)) {
		n = read_user_text(w->strings + offset, URI_MAX + 1, b.value);
		if (n > 0) {
			r->uri_bytes = value_bytes(&b, n - 1, URI_MAX);
			r->uri_stored = n - 1;
			return;
		}
	}
	text = sapi && php->known ? user_u64(sapi + php->sg_request_uri) : 0;
	n = text ? read_user_text(w->strings + offset, URI_MAX, text) : 0;
	if (n > 1) {
		r->uri_bytes = n - 1;
		r->uri_stored = n - 1;
		r->flags |= REQUEST_URI_IS_SCRIPT_NAME;
		return;
	}
	r->uri_bytes = 0;
	r->uri_stored = 0;
	r->flags |= REQUEST_URI_UNKNOWN;
}

static __always_inline void read_method(struct worker *w, struct php_binary *php, u64 table,
					u64 sapi)
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
		r->flags |= REQUEST_METHOD_FROM_SAPI;
		return;
	}
	r->flags |= REQUEST_METHOD_UNKNOWN;
}

#endif
