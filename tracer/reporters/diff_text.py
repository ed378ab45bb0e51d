"""Changes between two recordings in words: cells, sentences, and what makes the recordings hard to compare."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence

from tracer.analysis.contents import Contents
from tracer.analysis.diff import Outcome, Row, is_rise
from tracer.analysis.diff_change import Change, Figure, Kind, Why
from tracer.reporters.contents import options_of
from tracer.reporters.verdict_text import evidence
from tracer.units import counted, printable, show_bytes, show_duration

_FEW_REQUESTS = 100
_COUNTED = 0.99
_NO_EFFECT = ("duration_s", "count")  # options that end a recording
_BUSIER = 0.75  # share of the groups whose time is known, from which on the machine may be the cause
_LEAST_FOR_BUSIER = 4
NAMES = {Figure.KEPT: "kept", Figure.RISE: "rise", Figure.ZEND: "zend peak", Figure.DURATION: "duration"}


def amount(figure: Figure, value: float | None, *, signed: bool = False) -> str:
    """Such as `1.5 MiB`, `+64.0 KiB` or `-12.3 ms`; None is `-`."""
    if figure is not Figure.DURATION:
        return show_bytes(value, signed=signed)
    if value is None:
        return "-"
    sign = "-" if value < 0 else "+" if signed and value > 0 else ""
    return sign + show_duration(abs(value))


def cell(change: Change) -> str:
    """A change for a table: `+64.0 KiB`, `=`, `?`, and `-` if it was not measured. Of a new group: its figure."""
    if change.kind in (Kind.ROSE, Kind.FELL):
        return ("~" if change.estimated else "") + amount(change.figure, change.shift, signed=True)
    if change.kind is Kind.NEW:
        return amount(change.figure, change.after, signed=is_rise(change))
    if change.kind is Kind.GONE:
        return amount(change.figure, change.before)
    if change.kind is Kind.UNCLEAR:
        return "-" if change.why is Why.NOT_MEASURED else "?"
    return "=" if change.kind is Kind.SAME else change.kind.value


def sentence(change: Change) -> str:
    """A change as a sentence without its subject, as sure as it is: `keeps 64.0 KiB more a request: …`."""
    return _SENTENCES[change.kind](change)


def _moved(change: Change) -> str:
    about = "about " if change.estimated else ""
    size = about + amount(change.figure, abs(change.shift or 0.0))
    if change.shift is None:
        size = "at least " + amount(change.figure, min(abs(change.low or 0.0), abs(change.high or 0.0)))
    more = {
        Figure.KEPT: f"keeps {size} more a request",
        Figure.RISE: f"raises its worker by {size} more while it runs",
        Figure.ZEND: f"needs {size} more of PHP's heap",
        Figure.DURATION: f"takes {size} more",
    }[change.figure]
    what = more if change.kind is Kind.ROSE else more.replace(f"{size} more", f"{size} less")
    means = f"{amount(change.figure, change.before)} before, {amount(change.figure, change.after)} after"
    return f"{what}: {means} ({_basis(change)})"


def _basis(change: Change) -> str:
    """The interval, and the requests that it comes from."""
    requests = f"{change.requests_before:,} and {counted(change.requests_after, 'request')}"
    low, high = (amount(change.figure, bound, signed=True) for bound in (change.low, change.high))
    if change.estimated:
        return f"by an estimate, {low} to {high}; {requests}"
    return requests if low == high else f"99.9 %: {low} to {high}; {requests}"


def _new(change: Change) -> str:
    after = amount(change.figure, change.after)
    requests = counted(change.requests_after, "request")
    if not is_rise(change):
        return f"is new: {NAMES[change.figure]} {after} in {requests}"
    about = "about " if change.estimated else ""
    return f"is new, and keeps {about}{after} a request{', by an estimate' if change.estimated else ''} ({requests})"


def _gone(change: Change) -> str:
    before = amount(change.figure, change.before)
    return f"is gone: {NAMES[change.figure]} {before} in {counted(change.requests_before, 'request')} before"


def _same(change: Change) -> str:
    low, high = (amount(change.figure, bound, signed=True) for bound in (change.low, change.high))
    span = f"by {low}" if low == high else f"by {low} to {high}"
    return f"{NAMES[change.figure]} is the same: it changed {span}, which is too little to matter"


def _warm_up(change: Change) -> str:
    if change.verdict is None:
        raise ValueError("a warm-up without its verdict")
    which = "after" if (change.shift or 0.0) > 0 else "before"
    return f"fills caches in the recording {which}: it {evidence(change.verdict)}"


def _unclear(change: Change) -> str:
    name = NAMES[change.figure]
    low, high = (amount(change.figure, bound, signed=True) for bound in (change.low, change.high))
    changed = f"{name} changed by {low if low == high else f'{low} to {high}'}"
    requests = f"{change.requests_before:,} before, {change.requests_after:,} after"
    if change.why is Why.VERDICT and change.verdict is not None:
        which = "after" if (change.low or 0.0) > 0 else "before"
        return f"{changed}, but the verdict {which} is unclear: {evidence(change.verdict)}"
    return {
        Why.FEW: f"{name}: too few requests ({requests})",
        Why.WIDE: f"{changed} ({requests}): more requests decide",
        Why.NOT_MEASURED: f"{name} was not measured in both recordings",
        Why.NOT_SURE: f"{changed}, by an estimate that may be of nothing",
        Why.NOT_ALIKE: f"{name} is not compared: the recordings were made in different ways, which changes it",
        Why.REST: f"{name} is not compared: this is a rest of many routes, which may be others",
    }.get(change.why or Why.WIDE, changed)


_SENTENCES: dict[Kind, Callable[[Change], str]] = {
    Kind.ROSE: _moved,
    Kind.FELL: _moved,
    Kind.SAME: _same,
    Kind.WARM_UP: _warm_up,
    Kind.UNCLEAR: _unclear,
    Kind.NEW: _new,
    Kind.GONE: _gone,
}


def findings(rows: Sequence[Row], metric: Figure) -> list[tuple[str, Row, Change]]:
    """The largest rise of each figure, that of the metric first, and the largest fall of the metric, with a label."""
    found = []
    for figure in (metric, *(figure for figure in Figure if figure is not metric)):
        risen = [(change.shift or change.low or 0.0, row, change) for row in rows for change in row.rises
                 if change.figure is figure]  # fmt: skip
        if risen:
            _, row, change = max(risen, key=lambda one: one[0])
            found.append(("NEW LEAK" if change.kind is Kind.NEW else "WORSE", row, change))
    fallen = [(row.changes[metric].shift or row.changes[metric].high or 0.0, row) for row in rows
              if row.changes[metric].kind is Kind.FELL]  # fmt: skip
    if fallen:
        _, row = min(fallen, key=lambda one: one[0])
        found.append(("BETTER", row, row.changes[metric]))
    return found


def unclear(rows: Sequence[Row], metric: Figure) -> list[tuple[Row, Change]]:
    """The rows of which the metric is unclear, those that may have risen most first; then by requests."""
    found = [(row, row.changes[metric]) for row in rows if row.changes[metric].kind is Kind.UNCLEAR]
    found.sort(key=lambda pair: (-(pair[1].high or 0.0), -max(pair[0].requests_before, pair[0].requests_after)))
    return found


def conclusion(rows: Sequence[Row], metric: Figure, noun: str) -> str:
    """A sentence on all rows: how many became worse, and how many nobody knows of."""
    worse = sum(bool(row.rises) for row in rows)
    both = [row for row in rows if row.outcome not in (Outcome.NEW, Outcome.NEW_LEAK, Outcome.GONE)]
    open_ = len(unclear(both, metric))
    new = sum(row.outcome in (Outcome.NEW, Outcome.NEW_LEAK) for row in rows)
    gone = sum(row.outcome is Outcome.GONE for row in rows)
    start = f"{counted(worse, noun)} {'is' if worse == 1 else 'are'}" if worse else f"No {noun} is"
    text = f"{start} surely worse, of {len(both):,} in both recordings"
    text += f"; {NAMES[metric]} is unclear in {open_:,} of them" if open_ else ""
    text += f"; {new:,} new" if new else ""
    return text + (f"; {gone:,} gone." if gone else ".")


def subject(found: Contents, lost: int) -> str:
    """One recording in a line: `a.phptrace: 956 requests, 4 workers, 0 lost, web1, PHP 8.2.36, backend bpf`."""
    parts = [counted(found.requests, "request"), counted(found.workers, "worker"), f"{lost:,} lost"]
    parts += [found.host] if found.host else []
    parts += [f"PHP {', '.join(found.php)}"] if found.php else []
    parts += [f"backend {found.backend}"] if found.backend else []
    return printable(f"{found.path}: {', '.join(parts)}")


def doubts(before: Contents, after: Contents) -> list[str]:
    """A line for each way in which the recordings are hard to compare."""
    found = [
        f"{what}: {one or 'unknown'} before, {other or 'unknown'} after"
        for what, one, other in _differences(before, after)
    ]
    if None not in (before.started_ns, after.started_ns) and (after.started_ns or 0) < (before.started_ns or 0):
        found.append(f"order: BEFORE began at {_time(before.started_ns)}, which is later than AFTER")
    return [printable(line) for line in found]


def _differences(before: Contents, after: Contents) -> Iterator[tuple[str, str | None, str | None]]:
    for what, texts in _PROPERTIES.items():
        one, other = texts(before), texts(after)
        if one != other:
            yield what, one, other
    few = min(before.requests, after.requests) < _FEW_REQUESTS
    for what, number, matters in (
        ("requests", lambda one: one.requests, few),
        ("lost", lambda one: one.lost, before.lost or after.lost),
        ("gaps in tracing", lambda one: len(one.gaps), before.gaps or after.gaps),
    ):
        if matters:
            yield what, f"{number(before):,}", f"{number(after):,}"
    if not before.closed or not after.closed:
        yield "closed", "yes" if before.closed else "no", "yes" if after.closed else "no"
    was, now = (one.counted / one.requests if one.requests else 0.0 for one in (before, after))
    if min(was, now) < _COUNTED:
        yield "native memory counted in", f"{100 * was:.0f} %", f"{100 * now:.0f} %"


def _options(found: Contents) -> str | None:
    if not found.options:
        return None
    return " ".join(options_of(found, but=_NO_EFFECT)) or "none"


_PROPERTIES: dict[str, Callable[[Contents], str | None]] = {
    "host": lambda one: one.host,
    "kernel": lambda one: one.kernel,
    "PHP": lambda one: ", ".join(one.php) or None,
    "backend": lambda one: one.backend,
    "targets": lambda one: ", ".join(name for name in one.targets if not name.isdigit()) or None,  # a PID changes
    "options": _options,
    "schema": lambda one: str(one.schema),
}


def busier(rows: Sequence[Row]) -> str | None:
    """A remark if nearly all groups take longer, or less long: then the machine is more likely the cause."""
    known: list[Kind] = [row.changes[Figure.DURATION].kind for row in rows]
    known = [kind for kind in known if kind in (Kind.ROSE, Kind.FELL, Kind.SAME)]
    if len(known) < _LEAST_FOR_BUSIER:
        return None
    for kind, word in ((Kind.ROSE, "longer"), (Kind.FELL, "less long")):
        if known.count(kind) >= _BUSIER * len(known):
            return f"{known.count(kind):,} of {len(known):,} take {word}: the load or the machine may be the cause"
    return None


def _time(unix_ns: int | None) -> str:
    return f"{datetime.datetime.fromtimestamp((unix_ns or 0) // 1_000_000_000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
