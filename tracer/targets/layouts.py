"""PHP's structures by version: the only module with PHP version numbers.

Offsets for 64-bit, non-thread-safe builds. The heap's offsets are not here: they are decoded from each
binary (machine_code.py), since a distribution's binary may differ from what its version says.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets in PHP's globals."""

    version: tuple[int, int]
    # sapi_globals_struct, main/SAPI.h
    sg_method: int
    sg_path_translated: int
    sg_request_uri: int
    sg_response_code: int
    # php_core_globals, main/php_globals.h
    pg_memory_limit: int
    pg_last_error_type: int
    pg_last_error_message: int
    # zend_executor_globals, Zend/zend_globals.h
    eg_exit_status: int


# Newest first. Source of each row: offsetof() compiled against the headers of the package named.
LAYOUTS = (
    Layout(  # Debian php8.2-dev 8.2.36-1~deb12u1, x86-64
        version=(8, 2),
        sg_method=8,
        sg_path_translated=40,
        sg_request_uri=48,
        sg_response_code=216,
        pg_memory_limit=48,
        pg_last_error_type=504,
        pg_last_error_message=512,
        eg_exit_status=428,
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class StackLayout:
    """Byte offsets for walking PHP's call stack; the constants in bpf/php_stack.h are the same in all versions."""

    version: tuple[int, int]
    eg_current_execute_data: int  # zend_executor_globals, Zend/zend_globals.h
    # zend_op_array, Zend/zend_compile.h
    filename: int  # line_start follows it
    opcodes: int
    last: int
    generator_execute_data: int  # zend_generator, Zend/zend_generators.h
    # Kinds of call (This.u1.type_info) whose function may be freed within a request, so that another function
    # gets its address: ZEND_CALL_CODE (1 << 16: include, eval) and ZEND_CALL_CLOSURE (1 << 22), Zend/zend_compile.h.
    volatile_calls: int = 1 << 16 | 1 << 22


# Newest first. Source: struct _zend_op_array of that version's Zend/zend_compile.h, and each binary's own accessors
# (php.py). Compared with debug_backtrace(), line by line: Debian's 7.4.33, 8.2.36 and 8.4.27, and 8.3.8 and 8.5.2 of
# Red Hat's family, with and without opcache and JIT.
STACK_LAYOUTS = (
    StackLayout((8, 5), 512, filename=168, opcodes=104, last=96, generator_execute_data=56),
    StackLayout((8, 4), 488, filename=168, opcodes=104, last=96, generator_execute_data=56),
    StackLayout((8, 3), 488, filename=144, opcodes=80, last=76, generator_execute_data=56),
    StackLayout((8, 2), 488, filename=152, opcodes=88, last=80, generator_execute_data=56),
    StackLayout((7, 4), 488, filename=136, opcodes=64, last=60, generator_execute_data=64),
)

# env.hash_table in struct _fcgi_request (main/fastcgi.c). The structure is private to that file and
# the same in 8.2.32 and 8.2.36. Names found through it are compared: a wrong offset finds nothing.
FCGI_ENV = 8296


def layout_of(version: tuple[int, int, int]) -> Layout | None:
    """The offsets in the globals of that PHP; None if the version is not in the table."""
    return next((row for row in LAYOUTS if row.version == version[:2]), None)


def stack_layout_of(version: tuple[int, int, int]) -> StackLayout | None:
    """The offsets for the call stack of that PHP; None if the version is not in the table."""
    return next((row for row in STACK_LAYOUTS if row.version == version[:2]), None)
