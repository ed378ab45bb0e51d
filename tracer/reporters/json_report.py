"""A ranking as one JSON document. Fields are only ever added."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TextIO

from tracer.analysis.balance import Balance
from tracer.analysis.between import Between
from tracer.analysis.estimation import Together
from tracer.analysis.flame.heaviest import Heaviest
from tracer.analysis.group import Group
from tracer.analysis.start import Parts
from tracer.analysis.tally import Tally
from tracer.analysis.uncounted import Mismatch
from tracer.facts import Place
from tracer.reporters.table import growth_per_hour
from tracer.reporters.verdict_text import Source, evidence, next_step

SCHEMA = 2


def render(
    groups: Sequence[Group],
    tally: Tally,
    out: TextIO,
    heaviest: Heaviest | None = None,
    balance: Balance | None = None,
    *,
    between: Between | None = None,
    parts: Parts | None = None,
    together: Sequence[Together] = (),
    places: Mapping[Place, str] = MappingProxyType({}),
    why_not_estimated: str | None = None,
    mismatch: Mismatch | None = None,
    group_by: str | None = None,
    source: Source | None = None,
) -> None:
    """Write the document. Texts are not escaped; bytes that are not UTF-8 become U+FFFD, since JSON has no bytes.

    `places`: where requests ran, with the names that groups have as `container`.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "group_by": group_by,
        "requests": tally.requests,
        "left_out": tally.left_out,
        "lost": tally.lost,
        "incomplete": tally.incomplete,
        "incomplete_growth_bytes": tally.incomplete_growth,
        "unended": tally.unended,
        "uri_unknown": tally.uri_unknown,
        "counted": tally.counted,
        "workers": tally.workers,
        "forked": [{**dataclasses.asdict(forked), "by": json_text(forked.by)} for forked in tally.forked()],
        "losses": {str(json_text(why)): lost for why, lost in tally.losses.items()},
        "in_flight": [
            {
                "host": json_text(one.host),
                "pid": one.pid,
                "container": json_text(one.container),
                "container_id": json_text(one.container_id),
                "uri": None if one.uri is None else json_text(one.uri),
                "script": None if one.script is None else json_text(one.script),
                "started_ns": one.started_ns,
                "duration_ns": one.duration_ns,
                "growth_bytes": one.growth,
                "growth_per_hour": growth_per_hour(one),
            }
            for one in tally.in_flight
        ],
        "not_traced": [json_text(sentence) for sentence in tally.not_traced],
        "groups": [_group(group, source or Source()) for group in groups],
        "containers": [
            {"name": json_text(name), **{field: json_text(value) for field, value in place._asdict().items()}}
            for place, name in places.items()
        ],
    }
    document["together"] = [
        {**dataclasses.asdict(entry), "keys": [json_text(key) for key in entry.keys]} for entry in together
    ]
    document["why_not_estimated"] = why_not_estimated
    document["not_counted"] = (
        None
        if mismatch is None
        else {"since_ns": mismatch.since_ns, "kept_bytes": mismatch.grew, "explained_bytes": mismatch.charged}
    )
    document["growth"] = None if parts is None else dataclasses.asdict(parts)
    if balance is not None:
        document["balance"] = {**dataclasses.asdict(balance), "why": json_text(balance.why)}
        if between is not None:
            document["balance"]["from_requests"] = dataclasses.asdict(between)
    if heaviest is not None:
        document["stacks"] = {
            "title": json_text(heaviest.title),
            "total_bytes": heaviest.total,
            "remarks": [json_text(note) for note in heaviest.notes],
            "heaviest": [
                {
                    "bytes": stack.bytes,
                    "samples": stack.samples,
                    "routes": [json_text(route) for route in stack.routes],
                    "script": json_text(stack.script),
                    "container": json_text(stack.container),
                    "frames": [json_text(frame) for frame in stack.frames],
                }
                for stack in heaviest.stacks
            ],
        }
    json.dump(document, out, indent=2)
    out.write("\n")


def _group(group: Group, source: Source) -> dict[str, Any]:
    verdict = group.verdict
    return {
        **dataclasses.asdict(dataclasses.replace(group, verdict=None)),
        "key": json_text(group.key),
        "container": json_text(group.container),
        "verdict": verdict.kind.value if verdict is not None else None,
        "verdict_why": verdict.why.value if verdict is not None and verdict.why is not None else None,
        "evidence": evidence(verdict) if verdict is not None else None,
        "next": json_text(next_step(verdict, source)) if verdict is not None else None,
    }


def json_text(text: str | None) -> str | None:
    """The text with U+FFFD for lone surrogates, which most JSON parsers refuse; None stays None."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
