"""Seen from PHP's inside: a pool that logs its own RSS before and after every request agrees with phptrace."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Callable
from pathlib import Path

from fpm import TWO_WORKERS, Fpm
from tracing import Tracer

from tracer.analysis.ranking import GroupBy, Ranking, Sort

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
    outside = {Path(str(group.key)).name: group for group in ranking.groups(Sort.NATIVE)}
    assert sum(group.requests for group in outside.values()) == len(order)
    for script in ("leak.php", "brk.php"):
        count = order.count(next(each for each in order if each[0] == script))
        # The logger cannot see what its own shutdown function, and the request's end, still do.
        assert abs(inside[script] - (outside[script].kept_bytes or 0)) <= count * 96 * _KIB
    by_logger = sorted(("leak.php", "brk.php", "hello.php"), key=lambda script: -inside[script])
    by_phptrace = [script for script in outside if script != "hold.php"]
    assert by_phptrace == by_logger
