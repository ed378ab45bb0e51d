"""Where the best way is not open, the second best gives the same figures."""

from __future__ import annotations

from collections.abc import Callable

from fpm import Fpm
from tracing import Tracer


def test_calls_counted_in_the_kernel_agree_with_the_address_space(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), calls_by_tracepoint=True)
    for script in ("brk.php", "brk.php", "gd.php"):
        fpm.get(script)
    _, brk, gd = tracer.next(3)

    for request in (brk, gd):
        assert None not in (request.map_bytes, request.unmap_bytes, request.brk_bytes, request.vm_after)
        net = request.map_bytes - request.unmap_bytes + request.brk_bytes  # type: ignore[operator]
        assert net == request.vm_after - request.vm_before  # type: ignore[operator]
    assert (brk.map_calls, brk.unmap_calls) == (6, 5)


def test_the_fallback_says_what_it_costs_everybody(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), calls_by_tracepoint=True)

    assert any("every process on this host pays" in lack for lack in tracer.backend.lacking)
