"""Seen from PHP's inside: a pool that logs its own RSS before and after every request agrees with phptrace."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_kinds import BPF_PARAM
from fpm import TWO_WORKERS, Fpm
from tracing import Tracer

from tracer.analysis.ranking import GroupBy, Ranking

_KIB = 1024
# Native leakers of different sizes and frequencies, a heavy script, and one that does nothing.
_MIX = [("leak.php", str(521 * _KIB))] * 5 + [("brk.php", "")] * 2 + [("hold.php", "24")] * 2 + [("hello.php", "")] * 11


def _logged(path: Path) -> dict[str, int]:
    """Bytes of RssAnon kept per script, as the workers logged them."""
    kept: dict[str, int] = collections.defaultdict(int)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        kept[record["script"]] += record["kept"]
    return dict(kept)


@pytest.mark.parametrize("backend", [BPF_PARAM], scope="module")
def test_a_logger_inside_php_agrees_per_script(start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]) -> None:
    fpm = start_fpm(www=f"{TWO_WORKERS}\nphp_admin_value[auto_prepend_file] = {{folder}}/logger.inc")
    log = fpm.folder / "log"
    log.touch()
    log.chmod(0o666)
    rng = random.Random(17)
    order = _MIX * 6
    rng.shuffle(order)
    for script in dict(_MIX):
        for _ in range(4):
            fpm.get(script, QUERY_STRING="100000")
    log.write_text("")
    tracer = trace(str(fpm.master))
    for script, query in order:
        fpm.get(script, QUERY_STRING=query)
    requests = tracer.next(len(order))

    inside = _logged(log)
    ranking = Ranking(GroupBy.SCRIPT)
    for request in requests:
        ranking.add(request)
    outside = {Path(str(group.key)).name: group for group in ranking.groups()}
    assert sum(group.requests for group in outside.values()) == len(order)
    # The logger cannot see what its own shutdown function, and the request's end, still do.
    kept = outside["leak.php"].kept_bytes
    assert kept is not None
    assert abs(inside["leak.php"] - kept) <= order.count(_MIX[0]) * 96 * _KIB
    # Of the block that brk.php keeps it touches nothing, so that RSS does not show it.
    kept = outside["brk.php"].kept_bytes
    assert kept is not None
    assert kept >= inside["brk.php"]
    assert outside["hello.php"].kept_bytes == outside["hold.php"].kept_bytes == 0
