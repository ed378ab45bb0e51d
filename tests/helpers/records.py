"""Records of the ring buffer, as the kernel submits them."""

from __future__ import annotations

from typing import Any

from tracer.backends.records.request_structs import REQUEST, REQUEST_FIELDS, SCRIPT_MAX, URI_MAX, EventKind

MEASURED = {
    "kind": EventKind.REQUEST,
    "pid": 4241,
    "nth": 7,
    "started_ns": 1_000_003,
    "ended_ns": 8_000_009,
    "cpu_ns": 5_000_011,
    "anon_before": 10_000_019,
    "anon_end": 10_400_009,
    "anon_after": 10_524_307,
    "file_before": 2_000_003,
    "file_after": 2_000_029,
    "shmem_before": 300_007,
    "shmem_after": 300_017,
    "anon_peak": 30_000_001,
    "zend_used_end": 401_987,
    "zend_peak": 2_921_293,
    "zend_real_peak": 4_194_319,
    "zend_real_before": 2_097_169,
    "zend_real_end": 2_359_309,
    "zend_real_after": 2_097_211,
    "memory_limit": 134_217_757,
    "vm_before": 250_000_013,
    "vm_after": 250_000_013 + 2_097_169 - 1_572_899 - 8_191,
    "map_bytes": 2_097_169,
    "unmap_bytes": 1_572_899,
    "brk_bytes": -8_191,
    "map_calls": 5,
    "unmap_calls": 2,
    "brk_calls": 11,
    "native_alloc_bytes": 70_096,
    "native_alloc_calls": 67,
    "native_free_bytes": 34_304,
    "native_free_calls": 31,
    "native_mapped_bytes": 65_536,
    "native_between_bytes": 6_192,
    "minor_faults": 131,
    "major_faults": 3,
    "status": 503,
    "method": b"POST",
}

# The worker of the record, as a WorkerTable knows it: the values of request_decoder.ORIGIN.
ORIGIN = (7907, 4231, "shop", "3f2a" * 16, "/docker/" + "3f2a" * 16, "mnt:4026532768", "/srv/jail")


def record(script: bytes = b"/srv/index.php", uri: bytes = b"/shop", **changed: Any) -> bytes:
    """A record as the kernel submits it: everything measured, and no flag, but what is changed."""
    lengths = {
        "script_bytes": len(script),
        "uri_bytes": len(uri),
        "script_stored": min(len(script), SCRIPT_MAX),
        "uri_stored": min(len(uri), URI_MAX),
    }
    values = {**dict.fromkeys(dict(REQUEST_FIELDS), 0), **MEASURED, **lengths, **changed}
    return REQUEST.pack(*values.values()) + script[:SCRIPT_MAX] + uri[:URI_MAX]
