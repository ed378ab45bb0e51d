"""A site before and after a deploy, with workers of its own each time, and noise as real traffic has it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from planted import KIB, MIB, Act, Behaviour, PlantedWorker, always, once, sometimes

from tracer.analysis.diff import Comparison, Row
from tracer.analysis.diff_change import Figure
from tracer.analysis.diff_side import Side
from tracer.analysis.ranking import GroupBy
from tracer.analysis.routes import Routes
from tracer.facts import Request


def _page(_run: int, chance: random.Random) -> Act:
    """Needs another amount of memory each time, and keeps a few bytes now and then."""
    return Act(
        keeps=128 if chance.random() < 0.01 else 0,
        frees=chance.randrange(20 * KIB, 200 * KIB),
        zend=int(700 * KIB * chance.lognormvariate(0, 0.4)),
    )


def _search(run: int, chance: random.Random) -> Act:
    """Fills a cache in a worker's first hundreds of requests."""
    return Act(keeps=sum(900 for _ in range(16) if chance.random() < 0.97**run))


SITE: Mapping[str, Behaviour] = {
    "/hello.php": always(Act()),
    "/page.php": _page,
    "/search.php": _search,
    "/cache.php": once(Act(keeps=3 * MIB)),
    "/export.php": sometimes(0.3, Act(zend=12 * MIB)),
    "/leak.php": always(Act(keeps=34_304)),
    "/rare-leak.php": sometimes(0.05, Act(keeps=34_304)),
}


def with_leak(script: str, keeps: int = 64 * KIB) -> Mapping[str, Behaviour]:
    """The site, of which that script keeps so much more in each request."""
    before = SITE[script]

    def leaks(run: int, chance: random.Random) -> Act:
        act = before(run, chance)
        return Act(keeps=act.keeps + keeps, frees=act.frees, zend=act.zend)

    return {**SITE, script: leaks}


def recorded(
    site: Mapping[str, Behaviour] = SITE,
    *,
    requests: int = 1_500,
    seed: int = 1,
    workers: int = 4,
    first_pid: int = 100,
    mean_ms: float = 20.0,
) -> list[Request]:
    """Random requests for the site's scripts by new workers. Durations are skewed; one in 200 is ten times as long."""
    chance = random.Random(seed)
    pool = [PlantedWorker(first_pid + number) for number in range(workers)]
    found = []
    for number in range(requests):
        worker = pool[chance.randrange(workers)]
        script = chance.choice(list(site))
        act = site[script](worker.runs.get(script, 0) + 1, chance)
        duration = mean_ms * 1e6 * chance.lognormvariate(0, 0.5) * (10 if chance.random() < 0.005 else 1)
        one = worker.serve(script, act, 1_700_000_000_000_000_000 + number * 20_000_000)
        found.append(one._replace(duration_ns=int(duration)))
    return found


def side(requests: Iterable[Request], by: GroupBy = GroupBy.SCRIPT) -> Side:
    """A side that has taken these requests."""
    found = Side(by, Routes())
    found.begin([], [], lost=0, filtered=False, frees=False)
    for one in requests:
        found.add(one)
    return found


def rows(
    before: Iterable[Request], after: Iterable[Request], by: GroupBy = GroupBy.SCRIPT, metric: Figure = Figure.KEPT
) -> dict[str | None, Row]:
    """The rows of a comparison by key, in their order."""
    return {row.key: row for row in Comparison(by, side(before, by), side(after, by)).rows(metric)}
