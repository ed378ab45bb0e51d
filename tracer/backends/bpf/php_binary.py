"""The entry of a PHP binary in the map `php_binaries`: its addresses and offsets, for the BPF programs."""

from __future__ import annotations

from tracer.backends.records.request_structs import PHP_BINARY
from tracer.targets.layouts import FCGI_ENV
from tracer.targets.php import Php


def php_binary_entry(php: Php, *, fastcgi: bool) -> bytes:
    """Return the `struct php_binary` of that PHP; `fastcgi`: its requests have a FastCGI environment."""
    layout = php.layout
    heap = (php.heap.size, php.heap.peak, php.heap.real_size, php.heap.real_peak) if php.heap else (0,) * 4
    offsets = (0,) * 8
    if layout is not None:
        offsets = (
            layout.sg_method,
            layout.sg_path_translated,
            layout.sg_request_uri,
            layout.sg_response_code,
            layout.pg_memory_limit,
            layout.pg_last_error_type,
            layout.pg_last_error_message,
            layout.eg_exit_status,
        )
    globals_known = None not in (php.sapi_globals, php.core_globals, php.executor_globals)
    return PHP_BINARY.pack(
        php.hooks.startup.address if php.hooks else 0,
        php.heap.slot if php.heap else 0,
        php.sapi_globals or 0,
        php.core_globals or 0,
        php.executor_globals or 0,
        *heap,
        *offsets,
        FCGI_ENV if fastcgi and php.sapi_globals else 0,
        int(layout is not None and globals_known),
    )
