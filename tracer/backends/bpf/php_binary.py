"""What the BPF programs have to know of a PHP binary: its entry in the map `builds`."""

from __future__ import annotations

from tracer.backends.records.request_structs import PHP_BINARY
from tracer.targets.layouts import FCGI_ENV
from tracer.targets.php import Php


def php_binary_entry(php: Php, *, fastcgi: bool) -> bytes:
    """The `struct build` of a binary."""
    heap, layout = php.heap, php.layout
    globals_known = None not in (php.sapi_globals, php.core_globals, php.executor_globals)
    return PHP_BINARY.pack(
        php.hooks.startup.address if php.hooks else 0,
        heap.slot if heap else 0,
        php.sapi_globals or 0,
        php.core_globals or 0,
        php.executor_globals or 0,
        heap.size if heap else 0,
        heap.peak if heap else 0,
        heap.real_size if heap else 0,
        heap.real_peak if heap else 0,
        layout.sg_method if layout else 0,
        layout.sg_path_translated if layout else 0,
        layout.sg_request_uri if layout else 0,
        layout.sg_response_code if layout else 0,
        layout.pg_memory_limit if layout else 0,
        layout.pg_last_error_type if layout else 0,
        layout.pg_last_error_message if layout else 0,
        layout.eg_exit_status if layout else 0,
        FCGI_ENV if fastcgi and php.sapi_globals else 0,
        int(layout is not None and globals_known),
    )
