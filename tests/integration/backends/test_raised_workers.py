"""The request that raised a worker is found; without its route, the weight is that of a worker that never served it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.analysis.high_water import HighWaterMarks

_MIB = 1 << 20


def _marks(tracer: Tracer, fpm: Fpm, uris: Sequence[str]) -> HighWaterMarks:
    """The marks of the pool's only worker after these requests of planted.php."""
    for uri in uris:
        fpm.get("planted.php", REQUEST_URI=uri, QUERY_STRING="1009")
    found = HighWaterMarks()
    found.begin_recording([], "host")
    for request in tracer.next(len(uris)):
        found.add(request)
    return found


def test_a_worker_weighs_about_what_it_would_without_the_route_that_raised_it(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    rows = ["/some-rows"] * 7
    pools = [start_fpm(www=ONE_WORKER) for _ in range(2)]
    for fpm in pools:
        (fpm.folder / "once").mkdir()
        (fpm.folder / "once").chmod(0o777)
    raised_one, innocent = (trace(str(fpm.master)) for fpm in pools)

    raised = _marks(raised_one, pools[0], [*rows, "/month", *rows])
    without = _marks(innocent, pools[1], [*rows, *rows])

    (worker,), (pool,) = raised.workers(), raised.pools()
    assert [step.route for step in worker.steps] == ["/month"]
    assert worker.steps[0].after - worker.steps[0].before > 80 * _MIB
    assert pool.without[0].route == "/month"
    weight = without.pools()[0].weight
    assert abs(pool.without[0].weight - weight) <= 0.05 * weight
