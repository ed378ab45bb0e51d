"""Requests of a certain growth, and rankings of them."""

from __future__ import annotations

from typing import Any

from samples import request

from tracer.analysis.group import Group
from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Place, Request


def grown(growth: int, script: str | None = "/a.php", **changed: object) -> Request:
    """A request of that growth, none of it native."""
    memory = {"anon_before": 1_000_003, "anon_end": 1_000_003, "anon_after": 1_000_003 + growth}
    return request(**{"script": script, **memory, **changed})


def native(kept: int, script: str | None = "/a.php") -> Request:
    """A request that kept so much, the first for its script in its worker."""
    return grown(0, script, native_kept=kept)


def ranked(*requests: Request, by: GroupBy = GroupBy.SCRIPT, **options: Any) -> Ranking:
    ranking = Ranking(by, **options)
    for one in requests:
        ranking.add(one)
    return ranking


def only(ranking: Ranking) -> Group:
    [group] = ranking.groups()
    return group


def of_a(ranking: Ranking) -> Group:
    """The group of /a.php."""
    [group] = [group for group in ranking.groups() if group.key == "/a.php"]
    return group


def after(nth: int) -> Request:
    """A request for another script that follows the one of that number, and was counted."""
    return grown(0, "/next.php", nth=nth + 1, started_ns=nth + 1, native_kept=0, native_alloc_bytes=0)


def in_place(place: Place, **changed: object) -> Request:
    """A request of a worker that runs there."""
    return request(**{**place._asdict(), **changed})
