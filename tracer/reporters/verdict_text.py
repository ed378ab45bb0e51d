"""Verdicts in words: the evidence as a sentence without its subject, and the command that is the next step."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable

from tracer.analysis.verdict.judge import Kind, Verdict, Why
from tracer.units import counted, printable, show_bytes

_LONGER = "-d 10m"


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where the requests came from, for commands."""

    files: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    stacks: bool = False  # call stacks were recorded

    @property
    def _files(self) -> str:
        return " ".join(printable(shlex.quote(file)) for file in self.files) or "FILE"

    @property
    def _targets(self) -> str:
        # A PID may be another process by then.
        names = dict.fromkeys("php-fpm" if target.isdecimal() else target for target in self.targets)
        return shown_targets(tuple(names))

    def record(self, options: str) -> str:
        """A command that records once more."""
        return f"phptrace record {options} {self._targets}"

    def report(self, options: str) -> str:
        """A command that reads the same recordings otherwise."""
        return f"phptrace report {options} {self._files}"

    def flame(self, options: str, output: str) -> str:
        """A command that shows the call stacks."""
        return f"phptrace flame {options} {self._files} -o {output}" if self.stacks else self.record("--stacks -d 60s")

    def export(self) -> str:
        """A command that prints every request."""
        return f"phptrace export --format csv {self._files}"


def shown_targets(names: Iterable[str]) -> str:
    """The targets of a recording for a command, in which none must become an option: php-fpm has no such name."""
    return " ".join(printable(shlex.quote(name)) for name in names if not name.startswith("-")) or "php-fpm"


def label(verdict: Verdict) -> str:
    """One word for a table: `leak`, `high-water`, `cache`."""
    return verdict.kind.value.partition("/")[0]


def evidence(verdict: Verdict) -> str:
    """Such as `keeps 28 KiB a request (33 % of them, 4 of 4 workers), 177 MiB an hour`."""
    if verdict.why is not None:
        return _UNCLEAR[verdict.why](verdict)
    return _EVIDENCE[verdict.kind](verdict)


def next_step(verdict: Verdict, source: Source) -> str:
    """A command."""
    if verdict.why in (Why.NOT_COUNTED, Why.NOT_SURE, Why.TOGETHER):
        return source.record("--native on -d 60s")
    if verdict.why is Why.FREED_MORE:
        return source.export()
    return {
        Kind.LEAK: source.flame("--retained", "leak.svg"),
        Kind.WARM_UP: source.record(_LONGER),
        Kind.HIGH_WATER: source.report("--group-by worker --sort peak"),
        Kind.CHURN: source.flame("--metric rss", "churn.svg"),
        Kind.CACHE: source.export(),
        Kind.STEADY: source.report("--sort growth"),
        Kind.UNCLEAR: source.record(_LONGER),
    }[verdict.kind]


def _rate(verdict: Verdict) -> str:
    """`keeps 28 KiB a request`, as sure as it is."""
    about = "about " if verdict.estimated else ""
    return f"keeps {about}{show_bytes(verdict.per_request)} a request{', by an estimate' if verdict.estimated else ''}"


def _workers(verdict: Verdict) -> str:
    return f"{verdict.agree:,} of {counted(verdict.workers, 'worker')}"


def _leak(verdict: Verdict) -> str:
    parts = []
    if verdict.low is not None and verdict.high is not None and verdict.high > 1.1 * verdict.low:
        parts.append(f"{show_bytes(verdict.low)} to {show_bytes(verdict.high)}")
    if verdict.share is not None and verdict.share < 0.995:
        parts.append(f"{_percent(verdict.share)} of them keep any")
    parts.append(_workers(verdict))
    if verdict.per_hour is not None:
        return f"{_rate(verdict)} ({', '.join(parts)}): {show_bytes(verdict.per_hour)} an hour"
    return f"{_rate(verdict)} ({', '.join(parts)}): {show_bytes(verdict.kept)} in {_requests(verdict)}"


def _warm_up(verdict: Verdict) -> str:
    if verdict.fades:
        return f"{_fading(verdict)}, {show_bytes(verdict.kept)} in all"
    since = f", and {show_bytes(verdict.late)} a request in the end" if verdict.late else ", and then no more"
    return f"kept {show_bytes(verdict.kept)} in the first requests of {counted(verdict.workers, 'worker')}{since}"


def _fading(verdict: Verdict) -> str:
    return (
        f"keeps less and less: {show_bytes(verdict.early)} a request in the beginning,"
        f" {show_bytes(verdict.late)} in the end"
    )


def _high_water(verdict: Verdict) -> str:
    rise = verdict.high_water
    if rise is None:
        raise ValueError("a high-water mark without its figures")
    span = f"from {show_bytes(rise.before)} to {show_bytes(rise.after)}"
    if rise.workers == 1:
        text = f"raised 1 worker {span}, and it stayed there"
    else:
        text = f"raised {rise.workers:,} workers, one of them {span}, and they stayed there"
    return text if verdict.estimated or verdict.kept is None else text + ": free memory that malloc keeps, not a leak"


def _churn(verdict: Verdict) -> str:
    return f"needs up to {show_bytes(verdict.needs)} a request, and gives it back"


def _cache(verdict: Verdict) -> str:
    return (
        f"added {show_bytes(verdict.shared)} of files and shared memory to {counted(verdict.workers, 'worker')}, where"
        " each counts what all share: opcache or APCu, for example"
    )


def _steady(verdict: Verdict) -> str:
    if verdict.estimated and verdict.high is not None:
        return f"keeps at most {show_bytes(verdict.high)} a request, by an estimate of {_requests(verdict)}"
    if verdict.kept is None:
        return f"{_requests(verdict)}, and the workers did not grow"
    return f"kept {show_bytes(verdict.kept) if verdict.kept > 0 else 'nothing'} in {_requests(verdict)}"


def _requests(verdict: Verdict) -> str:
    return counted(verdict.requests, "request")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"


def _few(verdict: Verdict) -> str:
    kept = f"kept {show_bytes(verdict.kept)} in {_requests(verdict)}" if verdict.kept else _requests(verdict)
    return f"{kept}, which {'are' if verdict.requests != 1 else 'is'} too few: {verdict.needed:,} more decide"


_EVIDENCE: dict[Kind, Callable[[Verdict], str]] = {
    Kind.LEAK: _leak,
    Kind.WARM_UP: _warm_up,
    Kind.HIGH_WATER: _high_water,
    Kind.CHURN: _churn,
    Kind.CACHE: _cache,
    Kind.STEADY: _steady,
}
_UNCLEAR: dict[Why, Callable[[Verdict], str]] = {
    Why.NOT_SEEN: lambda verdict: f"{_requests(verdict)}, and none was seen from its start to its end",
    Why.LOST: lambda verdict: (
        f"{_rate(verdict)}, but {_percent(verdict.lost_share)} of what happened was lost, possibly also what freed it"
    ),
    Why.NOT_COUNTED: lambda verdict: (
        f"{_requests(verdict)}, of which native memory was not counted, and the workers grew"
    ),
    Why.NOT_SURE: lambda verdict: f"keeps {show_bytes(verdict.high)} a request at most, and possibly nothing",
    Why.TOGETHER: lambda verdict: (
        f"{_requests(verdict)}, always with those of others, so that an estimate cannot tell them apart"
    ),
    Why.FEW: _few,
    Why.RARE: lambda verdict: (
        f"kept {show_bytes(verdict.kept)} in {_requests(verdict)}, too few of which kept any to tell a leak from a"
        " cache"
    ),
    Why.FALLS: lambda verdict: f"{_fading(verdict)}. A longer recording shows if it stops",
    Why.WORKERS_DIFFER: lambda verdict: f"{_rate(verdict)}, but only in {_workers(verdict)}",
    Why.FREED_MORE: lambda verdict: (
        f"freed {show_bytes(-(verdict.kept or 0))} more than it allocated in {_requests(verdict)}"
    ),
}
