/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Whether an error has ended the script, from PHP's globals. */
#ifndef PHPTRACE_PHP_ERROR_H
#define PHPTRACE_PHP_ERROR_H

#include "read.h"
#include "request_events.h"

/* E_ERROR, E_PARSE, E_CORE_ERROR, E_COMPILE_ERROR, E_USER_ERROR, E_RECOVERABLE_ERROR: Zend/zend_errors.h */
#define E_FATAL_ERRORS (1 | 4 | 16 | 64 | 256 | 4096)

static __always_inline bool last_error_is_fatal(struct worker *w, struct php_binary *php)
{
	s32 type = 0;

	read_user(&type, sizeof(type), w->bias + php->core_globals + php->pg_last_error_type);
	return type & E_FATAL_ERRORS;
}

/*
 * True if an error has ended the script: php_error_cb() then sets EG(exit_status) to 255 (main/main.c,
 * PHP 8.2). Of all SAPIs only php-fpm resets the status, when it runs a script; the error's type is never
 * reset. So both may be an earlier request's; the caller has to know that they are not.
 */
static __always_inline bool ended_by_error(struct worker *w, struct php_binary *php)
{
	s32 status = 0;

	read_user(&status, sizeof(status), w->bias + php->executor_globals + php->eg_exit_status);
	return status == 255 && last_error_is_fatal(w, php);
}

/* The message is freed at the end of each request: an error that has one is of this request. */
static __always_inline bool has_message(struct worker *w, struct php_binary *php)
{
	return user_u64(w->bias + php->core_globals + php->pg_last_error_message);
}

#endif
