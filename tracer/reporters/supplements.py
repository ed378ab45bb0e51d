"""The parts of a report beside its ranking, as text for people below the table, and as members of a JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TextIO

from tracer.analysis.supplements import Supplements
from tracer.facts import Place
from tracer.reporters import last_words_text, limits_text, worker_text
from tracer.reporters.json_report import json_text


def render(found: Supplements, out: TextIO, *, top: int | None, places: Mapping[Place, str]) -> None:
    """Write the parts that have something to show. `top`: the most workers to show; None for all.

    `places`: the name of each place where requests ran.
    """
    last_words_text.render(found.last_requests.deaths(places), found.last_requests.more, out)
    limits_text.render(found.limits.routes(places), out)
    if found.high_water is not None:
        workers = found.high_water.workers()
        shown = workers[:top]
        worker_text.render(shown, found.high_water.pools(), out, hidden=len(workers) - len(shown))


def document(found: Supplements, places: Mapping[Place, str]) -> dict[str, Any]:
    """The members of a JSON document. `high_water` is null unless the report is by worker."""
    marks = found.high_water
    return {
        "last_words": {
            "workers": [_valid(dataclasses.asdict(death)) for death in found.last_requests.deaths(places)],
            "more": found.last_requests.more,
            "stopped": found.last_requests.stopped,
        },
        "limits": {
            "routes": [_valid(dataclasses.asdict(row)) for row in found.limits.routes(places)],
            "timeouts": [_valid(one._asdict()) for one in found.limits.timeouts],
            "recordings_without_timeouts": found.limits.without_timeouts,
        },
        "high_water": None
        if marks is None
        else {
            "workers": [_valid(dataclasses.asdict(worker)) for worker in marks.workers()],
            "workers_forgotten": marks.forgotten,
            "pools": [_valid(dataclasses.asdict(pool)) for pool in marks.pools()],
        },
    }


def _valid(value: Any) -> Any:
    """The value with texts that JSON parsers accept."""
    if isinstance(value, dict):
        return {name: _valid(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(one) for one in value]
    return json_text(value) if isinstance(value, str) else value
