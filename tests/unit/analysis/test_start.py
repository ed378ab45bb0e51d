"""The growth of the workers as a sum: what requests keep, what each worker keeps once, the rest."""

from __future__ import annotations

from collections.abc import Iterator

from planted import Act, PlantedWorker

from tracer.analysis.between import Between, BetweenRequests
from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.analysis.start import Parts, parts
from tracer.analysis.verdict.judge import Kind, Verdict
from tracer.facts import Request
from tracer.reporters import balance_text

KIB = 1 << 10


def group(kept: int | None, warmup: int | None, kind: Kind | None = None) -> Group:
    verdict = None if kind is None else Verdict(kind)
    return Group("/a.php", 3, 0, 7, 2, 5, kept, *[None] * 7, warmup, 3, None, None, None, verdict=verdict)


def test_the_parts_add_up_to_the_growth_of_the_workers():
    groups = [group(1_000, 13, Kind.LEAK), group(-7, None), group(None, 17), group(300, 11, Kind.WARM_UP)]

    found = parts(groups, Between(workers=3, grew=2_000, between_requests=100))

    assert found == Parts(workers=3, start=341, kept=993, grew=2_000, between_requests=100, rest=566)
    assert found.grew == found.kept + found.start + found.between_requests + found.rest


def test_where_nothing_was_counted_all_is_rest():
    assert parts([group(None, None)], Between(workers=1, grew=7)) == Parts(1, None, None, 7, None, 7)
    assert parts([], Between(workers=0)) == Parts(0, None, None, None, None, None)


def recycled(workers: int, requests: int) -> Iterator[Request]:
    """Requests of workers that each end after so many: the first one keeps 280 KiB, each further one 1 KiB."""
    at = 1_700_000_000_000_000_000
    for pid in range(100, 100 + workers):
        worker = PlantedWorker(pid)
        for nth in range(requests):
            yield worker.serve("/cart.php", Act(keeps=240 * KIB if nth == 0 else KIB), at)
            at += 20_000_000


def test_the_start_of_workers_that_serve_15_requests_each_is_apart_from_what_these_keep():
    ranking, between = Ranking(GroupBy.SCRIPT), BetweenRequests()
    for request in recycled(44, 15):
        ranking.add(request)
        between.add(request)

    found = parts(ranking.groups(), between.result())

    assert (found.workers, found.start, found.kept) == (44, 44 * 279 * KIB, 44 * 15 * KIB)
    assert balance_text.start_line(found) == (
        "start of 44 workers: 12.0 MiB, 279 KiB each, kept once, in caches. It is not a leak."
    )
