"""The settings of a pool, with the arithmetic line by line, a block for www.conf, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, TextIO

from tracer.analysis.budget import RESERVE, Budget, BudgetFrom
from tracer.analysis.busy_workers import HOURS
from tracer.analysis.sizing import LEAST_REQUESTS, MOST_CHILDREN, RouteLoad, Sizing
from tracer.reporters.json_report import json_text
from tracer.units import counted, printable, show_bytes

SCHEMA = 1
_WIDTH = 96
_LABEL = 82
_ROUTE = 32
_PATH = 40
_PLAIN = re.compile(r"[A-Za-z0-9_.@:/+-]+")
_MUCH_RISE = 1 << 20  # routes that raise a worker by less are not listed


_MOST_POOLS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """The pool and the recording that a sizing is of. Texts are untrusted."""

    path: str
    pool: str | None
    host: str | None
    seconds: float | None  # of the recording
    workers: int  # that were seen
    cpus: int | None
    # Pools of the recording that need memory, too, where nobody said how much of it is for this one.
    other_pools: tuple[str, ...] = ()


def render(found: Sizing, about: About, out: TextIO) -> None:
    """Write the arithmetic and the block for www.conf."""
    requests = counted(found.requests, "request")
    took = "" if about.seconds is None else f" in {about.seconds:.0f} s"
    samples = f"{counted(found.samples, 'sample')} of {counted(found.workers, 'worker')}"
    out.write(f"{_head(about)} · {requests}{took} · {samples}\n")
    for title, lines in (
        ("budget", _budget(found.budget)),
        ("once, however many workers", _once(found)),
        ("each worker", _each(found)),
        ("pm.max_children", _children(found)),
        ("pm.max_requests", _replacement(found)),
        ("memory_limit", _limit(found)),
        ("routes that raise a worker most", _routes(found)),
        ("to know", _notes(found, about)),
    ):
        written = [part for line in lines for part in (textwrap.wrap(line, _WIDTH) if len(line) > _WIDTH else [line])]
        if written:
            out.write(f"\n{title}\n" + "".join(f"  {line}\n" for line in written))
    out.write("\n" + www_conf(found, about))


def render_json(found: Sizing, about: About, out: TextIO) -> None:
    """Write all figures, in bytes, with the reasons of those that are null."""
    figures: dict[str, Any] = {"schema": SCHEMA, **dataclasses.asdict(about), **dataclasses.asdict(found)}
    if found.budget is not None:
        figures["budget"] = {
            **figures["budget"],
            "source": found.budget.source.value,
            "reserve": found.budget.reserve,
            "usable": found.budget.usable,
        }
    figures["www_conf"] = www_conf(found, about)
    json.dump(_valid(figures), out, indent=2)
    out.write("\n")


def www_conf(found: Sizing, about: About) -> str:
    """The lines to paste into the pool's configuration; a comment for each setting that is not known."""
    source = f"; phptrace sizing, from {printable(about.path)}: {counted(found.requests, 'request')}"
    budget = "" if found.budget is None else f", budget {show_bytes(found.budget.total)}"
    lines = [f"{source}{budget}", _section("www" if about.pool is None else about.pool)]
    lines.append(_setting("pm.max_children", found.children.most))
    lines.append(_setting("pm.max_requests", found.replacement.requests))
    limit = found.limit.bytes
    lines.append(_setting("php_value[memory_limit]", None if limit is None else f"{limit >> 20}M"))
    return "".join(f"{line}\n" for line in lines)


def _section(pool: str) -> str:
    """The header of a pool's section; a comment if its name is not plain: a worker can give itself any.

    What follows `]` in a line is an entry of its own (Zend/zend_ini_scanner.l, PHP 7.4 to 8.5).
    """
    return f"[{pool}]" if _PLAIN.fullmatch(pool) else f"; in the section of the pool {printable(pool)}"


def _setting(name: str, value: int | str | None) -> str:
    return f"; {name}: not known" if value is None else f"{name} = {value}"


def _head(about: About) -> str:
    pool = "all requests" if about.pool is None else f"pool {printable(about.pool)}"
    return " · ".join(printable(text) for text in (about.path, about.host) if text) + f" · {pool}"


def _row(label: str, size: float) -> str:
    return f"{label:<{_LABEL}} {show_bytes(size):>10}"


def _budget(budget: Budget | None) -> Iterator[str]:
    if budget is None:
        return
    if budget.source is BudgetFrom.GIVEN:
        yield _row("given with --budget, for this pool alone", budget.total)
    else:
        what = "the host" if budget.source is BudgetFrom.HOST else f"cgroup {_cut(budget.cgroup or '')}"
        yield _row(f"memory of {what}" if budget.source is BudgetFrom.HOST else f"limit of {what}", budget.total)
        yield _row("- eaten there by others than this pool, page cache not counted", budget.others)
    yield _row(f"- reserve of {_percent(RESERVE)} for what was not measured", budget.reserve)
    yield _row("= for this pool", budget.usable)


def _once(found: Sizing) -> Iterator[str]:
    if not found.samples:
        return
    yield _row("shared memory (OPcache, APCu), and pages shared with the master", found.shared)
    yield _row("+ page cache of programs, libraries and files that a worker maps", found.files)
    yield _row("+ the master's own", found.master)
    yield _row("= once", found.children.once)


def _each(found: Sizing) -> Iterator[str]:
    if not found.samples:
        return
    when = "in a request (none was ever found idle)" if found.only_busy else "between requests"
    which = "the largest" if found.workers < 20 else "95 % have no more"
    yield _row(f"its own, {when}: {which} of {counted(found.workers, 'worker')}", found.idle)
    rate, requests = found.growth.per_request, found.replacement.requests
    if rate is not None and requests:
        times = f"{requests:,} requests x {show_bytes(rate)}"
        yield _row(f"+ growth until it is replaced: {times}", found.replacement.grows)
    else:
        yield _row("+ growth until it is replaced", found.replacement.grows)
    yield _row("= each, at rest", found.children.each)


def _children(found: Sizing) -> Iterator[str]:
    children = found.children
    if children.most is None:
        yield f"not known: {children.why}"
        if children.needed_for_one_more:
            yield _row("1 worker needs", children.needed_for_one_more)
        return
    once, each = show_bytes(children.once), show_bytes(children.each)
    yield _row(f"{once} once + {children.most:,} x {each}", children.once + children.most * children.each)
    mean = show_bytes(found.rise_mean)
    yield _row(f"+ in requests, several at their peaks (p99; {mean} each on average)", children.together)
    yield _row(f"= {counted(children.most, 'worker')}, all of them busy", children.needed)
    if children.most < MOST_CHILDREN:
        yield _row(f"  {children.most + 1:,} would need", children.needed_for_one_more)
    yield (
        f"p99: in {_percent(1 - HOURS)} of all hours at full load they never need more. Each worker is in one of the"
        " recorded requests, the longer ones more likely; the sum of what they need is worked out from that."
    )
    worst = f"Worst case, all in the heaviest request at once: {show_bytes(children.worst)}"
    fewer = "fits" if children.most_at_worst == children.most else f"is too much: {children.most_at_worst:,} would fit"
    yield f"{worst}, which {fewer}."


def _replacement(found: Sizing) -> Iterator[str]:
    replacement, growth = found.replacement, found.growth
    if replacement.requests is None:
        yield f"not known: {replacement.why}"
    elif not replacement.requests:
        yield "no growth was measured: workers need not be replaced, so 0"
    else:
        how = (
            "by samples of the workers, warm-up included"
            if growth.sampled
            else "what leaks, and at most what is unclear"
        )
        yield f"a request keeps up to {show_bytes(growth.per_request)} ({how}):"
        yield f"after {replacement.requests:,} requests a worker has grown by {show_bytes(replacement.grows)}"


def _limit(found: Sizing) -> Iterator[str]:
    limit = found.limit
    now = ", ".join("unlimited" if one < 0 else show_bytes(one) for one in limit.now)
    seen = f" (it was {now})" if now else ""
    if limit.bytes is None:
        yield f"not known: {limit.why}{seen}"
        return
    yield _row("Zend's heap, the largest of any request", limit.largest)
    if limit.fatal:
        yield _row(f"as it was: {counted(limit.fatal, 'request')} ended by a fatal error, possibly of it", limit.bytes)
    else:
        yield _row(f"x 1.25, and up to the next 8 MiB, 32 MiB at least{seen}", limit.bytes)
    if found.children.most and found.budget is not None:
        every = found.children.once + found.children.most * (found.idle + limit.bytes)
        fits = "fits" if every <= found.budget.usable else "does not fit"
        yield f"With all {counted(found.children.most, 'worker')} at it at once: {show_bytes(every)}, which {fits}."


def _routes(found: Sizing) -> Iterator[str]:
    for route in found.routes:
        if route.rise_max >= _MUCH_RISE:
            yield _route(route, found)


def _route(route: RouteLoad, found: Sizing) -> str:
    share = route.busy_ns / found.busy_ns if found.busy_ns else 0.0
    name = _cut(route.name, _ROUTE)
    return (
        f"{name:<{_ROUTE}} up to {show_bytes(route.rise_max, signed=True):>10},"
        f" {100 * route.requests / found.requests:>5.1f} % of requests, {100 * share:>5.1f} % of the time"
    )


def _notes(found: Sizing, about: About) -> Iterator[str]:
    if found.requests >= LEAST_REQUESTS:
        yield (
            f"A request heavier than all of these {found.requests:,} may still come, once in"
            f" {found.requests // 3:,} requests (95 %)."
        )
    if found.children.most is None:
        return
    if about.other_pools:
        names = ", ".join(printable(name) for name in about.other_pools[:_MOST_POOLS])
        more = ", …" if len(about.other_pools) > _MOST_POOLS else ""
        yield (
            f"The budget has to hold the other pools of the recording, too ({names}{more}). Give each pool its part of"
            " it with --budget."
        )
    if found.only_busy:
        yield "No worker was ever found between two requests, so what a request needs is counted twice."
    if about.seconds:
        yield f"On average, {found.busy_ns / 1e9 / about.seconds:.1f} of {counted(about.workers, 'worker')} were busy."
    if found.cpu_share and about.cpus:
        enough = max(1, round(about.cpus / found.cpu_share))
        yield (
            f"A busy worker computes {_percent(found.cpu_share)} of the time: {counted(enough, 'worker')} keep the"
            f" {counted(about.cpus, 'CPU')} busy. More only wait."
        )
    if found.growth.leak:
        yield (
            "Some routes leak, and workers that were there before the recording had grown by then. Restart php-fpm and"
            " record again for their size without that."
        )
    yield "With pm = dynamic, pm.max_spare_servers must not be more than pm.max_children."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cut(text: str, width: int = _PATH) -> str:
    shown = printable(text)
    return shown if len(shown) <= width else "…" + shown[1 - width :]


def _valid(value: Any) -> Any:
    """The value with texts that JSON can hold."""
    if isinstance(value, str):
        return json_text(value)
    if isinstance(value, dict):
        return {name: _valid(one) for name, one in value.items()}
    return [_valid(one) for one in value] if isinstance(value, list | tuple) else value
