"""The columns of a ranking: how each is called, shown, sorted and explained.

The table, its legend, and the options --sort and --columns all go by COLUMNS. A column's header is its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tracer.analysis.group import Group
from tracer.analysis.kept import How
from tracer.analysis.order import Order, by_kept, order_of
from tracer.analysis.ranking import GroupBy
from tracer.analysis.verdict.judge import Kind, Why
from tracer.reporters.verdict_text import label
from tracer.units import short_bytes, short_duration, show_bytes

_NEAR_LIMIT = 0.9
_FADES, _STOPPED = "fades", "stopped"
_VERDICT_STYLES = {Kind.LEAK: "bold red", Kind.UNCLEAR: "yellow"}


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column. `order` None: groups are sorted by key; `spare`: the higher, the sooner it gives way to others."""

    name: str
    width: int  # least, in cells
    cell: Callable[[Group], str]
    order: Order | None
    meaning: str
    spare: int = 0  # 0: never, if it is a default
    sorts: bool = True
    left: bool = False  # it is text, which begins on the left
    style: Callable[[Group], str] = lambda _: ""
    aliases: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """Its name as the table has it: a figure of time in small letters, as its unit."""
        return self.name if self.name in _TIMES else self.name.upper()


def column(name: str) -> Column:
    """The column of that name, in any case, or of an alias. ValueError if there is none."""
    found = _BY_NAME.get(name.strip().lower())
    if found is None:
        raise ValueError(f"{name!r} is not a column. Write one of {', '.join(one.name for one in COLUMNS)}.")
    return found


def default_columns(by: GroupBy, sort: Column, *, errors: bool) -> tuple[Column, ...]:
    """The columns where none are asked for; `errors`: some requests ended by a fatal error, or with a status of 5xx."""
    names = list(_OF_NAMES if by in (GroupBy.ROUTE, GroupBy.SCRIPT, GroupBy.URI) else _OF_WORKERS)
    if errors:
        at = names.index("p95")
        names[at:at] = ["fatal", "5xx"]
    if sort.name not in (*names, "key"):
        names.insert(names.index("kept"), sort.name)
    return tuple(_BY_NAME[name] for name in names)


def legend(columns: tuple[Column, ...]) -> str:
    """A paragraph on these columns, and on the signs in them."""
    meanings = "; ".join(f"{one.header}: {one.meaning}" for one in columns)
    return f"{meanings}. -: not measured or not counted; ~: an estimate; ≤: the most it may be."


def near_limit(group: Group) -> bool:
    """True if a request of the group needed nearly all that its memory_limit allows."""
    limit, peak = group.memory_limit, group.zend_peak_max
    return limit is not None and peak is not None and 0 < limit <= peak / _NEAR_LIMIT


def kept_text(group: Group, value: float | None, requests: int = 0) -> str:
    """A figure of native memory. An estimate has a tilde; if it may be nothing, ≤ says so.

    If it is not known, but the most that a request kept is, it is that of so many `requests`.
    """
    if value is None and group.kept_high is not None and requests:
        return "≤ " + show_bytes(group.kept_high * requests)
    if value is not None and abs(value) < 0.5:
        return "0"
    if value is not None and group.kept_low is not None and group.kept_low <= 0.0 < value:
        return "≤ " + show_bytes(value)
    about = "~" if group.kept_how == How.ESTIMATED.value else ""
    return about + show_bytes(value, signed=True)


def _per_hour(group: Group) -> str:
    verdict = group.verdict
    if verdict is not None and (verdict.kind is Kind.WARM_UP or verdict.why is Why.FALLS):
        return _FADES if verdict.fades or verdict.why is Why.FALLS else _STOPPED
    return kept_text(group, group.kept_per_hour)


def _share(group: Group) -> str:
    share = group.kept_share
    if share is None:
        return "-"
    return "<1 %" if 0 < share < 0.005 else _number(round(100 * share), " %")


def _number(value: int | None, unit: str = "") -> str:
    """A count with its unit; 0 has none."""
    return "-" if value is None else f"{value:,}{unit}" if value else "0"


def _zend(group: Group) -> str:
    limit = group.memory_limit
    if limit is None or group.zend_peak_max is None:
        return short_bytes(group.zend_peak_max)
    return f"{short_bytes(group.zend_peak_max)}/{short_bytes(limit) if limit > 0 else 'none'}"


def _signed(size: int | None) -> str:
    return "0" if size == 0 else show_bytes(size, signed=True)


def _verdict_style(group: Group) -> str:
    return "" if group.verdict is None else _VERDICT_STYLES.get(group.verdict.kind, "")


COLUMNS = (
    Column(
        "key", 0, lambda group: group.key or "(none)", None, "the name of the row", left=True,
        aliases=tuple(by.value for by in GroupBy),
    ),
    Column(
        "verdict", 10, lambda group: "-" if group.verdict is None else label(group.verdict), None,
        "what the requests do to memory", sorts=False, left=True, style=_verdict_style,
    ),
    Column(
        "reqs", 6, lambda group: _number(group.requests), lambda group: order_of(group.requests),
        "number of requests", spare=1, aliases=("requests",),
    ),
    Column(
        "kept", 9, lambda group: kept_text(group, group.kept_bytes, group.requests), by_kept,
        "memory outside PHP's own heap that they allocated and did not free, without what each worker keeps"
        " once, in caches",
        aliases=("native",),
    ),
    Column(
        "/hour", 9, _per_hour, by_kept, f"the same an hour, at the rate of the recording; {_FADES}: less and less;"
        f" {_STOPPED}: no more in the end",
        spare=2, aliases=("hour",),
    ),
    Column(
        "/req", 9, lambda group: kept_text(group, group.kept_per_request, 1),
        lambda group: order_of(group.kept_per_request), "its mean", aliases=("per-request",),
    ),
    Column(
        "keep", 5, _share, lambda group: order_of(group.kept_share), "share of the requests that kept any", spare=3,
    ),
    Column(
        "growth", 9, lambda group: _signed(group.growth_bytes), lambda group: order_of(group.growth_bytes),
        "all memory still held, including PHP's chunk cache, which later requests free",
    ),
    Column(
        "peak", 8, lambda group: show_bytes(group.anon_peak_max), lambda group: order_of(group.anon_peak_max),
        "the largest size of a worker during one of them", spare=4,
    ),
    Column(
        "rise", 5, lambda group: short_bytes(group.rise_max), lambda group: order_of(group.rise_max),
        "the most that one of them needed beyond what its worker had", spare=6,
    ),
    Column(
        "zend/limit", 10, _zend, lambda group: order_of(group.zend_peak_max),
        "largest peak of PHP's own heap, and the memory_limit of that request", spare=5,
        style=lambda group: "yellow" if near_limit(group) else "", aliases=("zend", "limit"),
    ),
    Column(
        "fatal", 5, lambda group: _number(group.fatal), lambda group: order_of(group.fatal),
        "number that ended by a fatal error", spare=3, style=lambda group: "red" if group.fatal else "",
    ),
    Column(
        "5xx", 4, lambda group: _number(group.status_5xx), lambda group: order_of(group.status_5xx),
        "number whose status was 500 to 599", spare=3, style=lambda group: "red" if group.status_5xx else "",
    ),
    Column(
        "mean", 6, lambda group: short_duration(group.duration_mean_ns),
        lambda group: order_of(group.duration_mean_ns), "mean duration",
    ),
    Column(
        "p95", 6, lambda group: short_duration(group.duration_p95_ns), lambda group: order_of(group.duration_p95_ns),
        "95 % of them took no longer", spare=4, aliases=("duration",),
    ),
    Column(
        "max", 6, lambda group: short_duration(group.duration_max_ns), lambda group: order_of(group.duration_max_ns),
        "longest duration", spare=7,
    ),
    Column(
        "total", 6, lambda group: short_duration(group.duration_total_ns),
        lambda group: order_of(group.duration_total_ns), "their durations together",
    ),
)  # fmt: skip
_TIMES = ("mean", "p95", "max", "total")
_BY_NAME = {name: one for one in COLUMNS for name in (one.name, *one.aliases)}
DEFAULT_SORT = _BY_NAME["kept"]
_OF_NAMES = ("verdict", "reqs", "kept", "/hour", "keep", "rise", "zend/limit", "p95", "max")
_OF_WORKERS = ("reqs", "kept", "/hour", "keep", "peak", "rise", "zend/limit", "p95", "max")
