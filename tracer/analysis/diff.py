"""Two recordings compared by group: per request, what changed in the memory that is kept and needed, and in time.

Groups are matched by name. The scripts of a release that has a folder of its own are matched with those of the release
before, as in flame graphs. Containers are matched by name, or not at all where each recording has one place only.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Collection, Mapping

from tracer.analysis.diff_change import Change, Figure, Kind, Why, change_of_kept, change_of_series, least_change
from tracer.analysis.diff_samples import Blocks, length_for_events
from tracer.analysis.diff_side import Side
from tracer.analysis.flame.file_matching import FileMapping
from tracer.analysis.group import Group
from tracer.analysis.kept import How
from tracer.analysis.places import place_names
from tracer.analysis.ranking import GroupBy, GroupKey
from tracer.analysis.routes import OTHER_ROUTES, RouteKey, RouteNames
from tracer.analysis.verdict.judge import Kind as VerdictKind
from tracer.analysis.verdict.judge import Verdict
from tracer.facts import Place


class Outcome(enum.Enum):
    """The outcome of a comparison of one group, in the order of a table."""

    WORSE = "worse"
    NEW_LEAK = "new leak"  # a new group that surely keeps memory
    MIXED = "mixed"  # one figure rose, and another one fell
    BETTER = "better"
    NEW = "new"
    GONE = "gone"
    UNCLEAR = "unclear"
    WARM_UP = "warm-up"
    SAME = "same"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A group in both recordings, or in one of them."""

    key: str | None
    container: str | None  # None: all requests ran in one place
    requests_before: int
    requests_after: int
    outcome: Outcome
    changes: Mapping[Figure, Change]

    @property
    def rises(self) -> Collection[Change]:
        """The figures that surely became more, a new leak included."""
        return [change for change in self.changes.values() if is_rise(change)]


def is_rise(change: Change) -> bool:
    """True if it surely is more than before, or a new group surely keeps memory."""
    return change.kind is Kind.ROSE or (change.kind is Kind.NEW and change.verdict is not None)


class Comparison:
    """Compares two sides, which have taken all their requests."""

    def __init__(self, by: GroupBy, before: Side, after: Side, *, not_alike: Collection[Figure] = ()) -> None:
        """`not_alike`: figures that the recordings are too different for, which are therefore unclear."""
        self._by = by
        self._before = before
        self._after = after
        self._not_alike = frozenset(not_alike)
        self._before_keys = before.groups().keys()
        self._after_keys = after.groups().keys()
        scripts = [_scripts(by, keys) for keys in (self._before_keys, self._after_keys)]
        self._files = FileMapping(*scripts)

    @property
    def moved(self) -> tuple[str, str] | None:
        """A folder before, and the folder after that its scripts were matched with."""
        return self._files.folders

    def rows(self, metric: Figure, *, least_requests: int = 1) -> list[Row]:
        """The groups with so many requests in one of the recordings, the worst first; `metric` decides what that is."""
        pairs = self._pairs()
        names = RouteNames.names(name for _, name in pairs)
        places = place_names(Place._make(at) for at, _ in pairs if at is not None)
        rows = []
        for (at, name), (first, second) in pairs.items():
            was, now = (
                None if key is None else side.groups()[key]
                for key, side in ((first, self._before), (second, self._after))
            )
            if max(0 if group is None else group.requests for group in (was, now)) < least_requests:
                continue
            changes = self._changes(first, second)
            rows.append(
                Row(
                    names[name] if isinstance(name, RouteKey) else name,
                    None if at is None else places[Place._make(at)],
                    0 if was is None else was.requests,
                    0 if now is None else now.requests,
                    _outcome(changes, metric, new=was is None, gone=now is None),
                    changes,
                )
            )
        return sorted(rows, key=lambda row: _order(row, metric))

    def _pairs(self) -> dict[_Name, tuple[GroupKey | None, GroupKey | None]]:
        """The groups before and after by what they have in common."""
        several = any(len({at for at, _ in keys}) > 1 for keys in (self._before_keys, self._after_keys))
        pairs: dict[_Name, tuple[GroupKey | None, GroupKey | None]] = {}
        for key in self._after_keys:
            pairs[key[0] if several else None, _plain(key)] = None, key
        moved = []
        for key in self._before_keys:
            name = key[0] if several else None, _plain(key)
            if name in pairs:
                pairs[name] = key, pairs[name][1]
            else:
                moved.append((name, key))
        for name, key in moved:
            new = name[0], self._new_name(name[1])
            first, second = pairs.get(new, (key, None))
            # A new name that is nowhere, or that another script has, helps nobody.
            pairs[new if first is None else name] = key, second if first is None else None
        return pairs

    def _new_name(self, name: str | RouteKey | None) -> str | RouteKey | None:
        if isinstance(name, RouteKey):
            return name if name.script is None else RouteKey(name.route, self._files.new_name(name.script))
        return self._files.new_name(name) if self._by is GroupBy.SCRIPT and name is not None else name

    def _changes(self, first: GroupKey | None, second: GroupKey | None) -> dict[Figure, Change]:
        if first is None or second is None:
            return self._only_in_one(first, second)
        before, after = self._before.samples(first), self._after.samples(second)
        series = {
            Figure.RISE: (before.rise, after.rise),
            Figure.ZEND: (before.zend, after.zend),
            Figure.DURATION: (before.duration, after.duration),
        }
        changes = {
            Figure.KEPT: change_of_kept(
                self._before.groups()[first],
                self._after.groups()[second],
                lambda: self._kept(first, second),
                (lambda: self._before.verdict(first), lambda: self._after.verdict(second)),
            )
        }
        changes.update((figure, change_of_series(figure, *pair)) for figure, pair in series.items())
        return {figure: self._doubted(change, second) for figure, change in changes.items()}

    def _kept(self, first: GroupKey, second: GroupKey) -> tuple[Blocks, Blocks, int]:
        before, after = self._before.kept(first), self._after.kept(second)
        return Blocks(1, before), Blocks(1, after), length_for_events(before, after)

    def _doubted(self, change: Change, key: GroupKey) -> Change:
        rest = isinstance(key[1], RouteKey) and key[1].route == OTHER_ROUTES
        if change.why is not Why.NOT_MEASURED and (rest or change.figure in self._not_alike):
            return dataclasses.replace(change, kind=Kind.UNCLEAR, why=Why.REST if rest else Why.NOT_ALIKE)
        return change

    def _only_in_one(self, first: GroupKey | None, second: GroupKey | None) -> dict[Figure, Change]:
        key, side, kind = (second, self._after, Kind.NEW) if first is None else (first, self._before, Kind.GONE)
        if key is None:
            raise ValueError("a group that is in neither recording")
        group, samples = side.groups()[key], side.samples(key)

        def change(figure: Figure, mean: float | None, count: int) -> Change:
            if kind is Kind.NEW:
                return Change(figure, kind, after=mean, requests_after=count)
            return Change(figure, kind, before=mean, requests_before=count)

        kept = change(Figure.KEPT, group.kept_per_request, group.counted)
        if kind is Kind.NEW and Figure.KEPT not in self._not_alike:
            kept = _new_leak(kept, group, lambda: side.verdict(key))
        return {
            Figure.KEPT: kept,
            Figure.RISE: change(Figure.RISE, samples.rise.mean, samples.rise.count),
            Figure.ZEND: change(Figure.ZEND, samples.zend.mean, samples.zend.count),
            Figure.DURATION: change(Figure.DURATION, samples.duration.mean, samples.duration.count),
        }


# What both recordings have in common: the place, if they have several, and the name.
_Name = tuple[tuple[str | int | None, ...] | None, str | RouteKey | None]


def _new_leak(change: Change, group: Group, verdict: Callable[[], Verdict]) -> Change:
    """The change of a new group with its verdict, and the bytes that it keeps, if it surely keeps any."""
    least = least_change(Figure.KEPT, None, None, group.requests)
    if group.kept_low is None or group.kept_low <= least or group.kept_per_request is None:
        return change
    found = verdict()
    if found.kind is not VerdictKind.LEAK:
        return change
    return dataclasses.replace(
        change,
        shift=group.kept_per_request,
        low=group.kept_low,
        high=group.kept_high,
        estimated=group.kept_how == How.ESTIMATED.value,
        verdict=found,
    )


def _plain(key: GroupKey) -> str | RouteKey | None:
    name = key[1]
    if isinstance(name, tuple) and not isinstance(name, RouteKey):
        raise ValueError("workers are not compared")
    return name


def _scripts(by: GroupBy, keys: Collection[GroupKey]) -> set[str]:
    """The scripts of the groups."""
    names = {_plain(key) for key in keys}
    if by is GroupBy.SCRIPT:
        return {name for name in names if isinstance(name, str)}
    return {name.script for name in names if isinstance(name, RouteKey) and name.script is not None}


def _outcome(changes: Mapping[Figure, Change], metric: Figure, *, new: bool, gone: bool) -> Outcome:
    kinds = {change.kind for change in changes.values()}
    if gone:
        return Outcome.GONE
    if new:
        return Outcome.NEW_LEAK if any(map(is_rise, changes.values())) else Outcome.NEW
    if Kind.ROSE in kinds:
        return Outcome.MIXED if Kind.FELL in kinds else Outcome.WORSE
    if Kind.FELL in kinds:
        return Outcome.BETTER
    return {Kind.SAME: Outcome.SAME, Kind.WARM_UP: Outcome.WARM_UP}.get(changes[metric].kind, Outcome.UNCLEAR)


_OUTCOMES = list(Outcome)


def _order(row: Row, metric: Figure) -> tuple[object, ...]:
    """By the change of the metric, if it is sure; then by the outcome, by the metric and by the name."""
    change = row.changes[metric]
    size = change.shift or 0.0
    return (
        0 if is_rise(change) else 1,
        -size if is_rise(change) else 0.0,
        _OUTCOMES.index(row.outcome),
        -abs(size),
        -max(row.requests_before, row.requests_after),
        row.key is None,
        row.key or "",
        row.container or "",
    )
