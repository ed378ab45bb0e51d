"""A look at a worker's heap in which no two figures are alike."""

from __future__ import annotations

from tracer.analysis.heap import HeapLook, MallocLook, ZendLook

MALLOC = MallocLook(
    in_use=8_000_009,
    uncertain=0,
    free=1_000_033,
    cached=20_047,
    top=100_043,
    resident=9_000_011,
    mapped=700_001,
    sizes={32: 3001, 48: 2003, 1040: 1009},
    settled=True,
    notes=(),
)
ZEND = ZendLook(
    resident=3_000_017,
    resident_cached=1_500_019,
    live=2 << 20,
    cached=4 << 20,
    settled=True,
    notes=(),
)
LOOK = HeapLook(
    pid=4241,
    start_ticks=777_013,
    title="php-fpm: pool www",
    pool="www",
    anon=20_000_003,
    malloc=MALLOC,
    zend=ZEND,
    lacking={},
)
