"""The requests of one of two recordings that are compared, by group: what they kept, needed, and took.

A worker's first request of its group, and of each route of a script, is left out of all figures: it fills caches and
compiles code. A recording after a deploy has many of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from operator import itemgetter

from tracer.analysis.diff_samples import RAW, Series
from tracer.analysis.first_runs import Run
from tracer.analysis.group import Group
from tracer.analysis.ranking import COLUMNS as RANKING_COLUMNS
from tracer.analysis.ranking import GroupBy, GroupKey, Ranking
from tracer.analysis.routes import Routes
from tracer.analysis.verdict.judge import Verdict
from tracer.facts import Look, Release, Request, Worker

# Fields of Request that a Side needs. Without those of files and shared memory, a recording reads faster.
COLUMNS = tuple(name for name in RANKING_COLUMNS if not name.startswith(("file_", "shmem_")))
_GROUPS_MAX = 20_000
_FIGURES = itemgetter(*map(Request._fields.index, ("anon_before", "anon_peak", "zend_peak", "duration_ns")))


class Samples:
    """The figures of the requests of a group, without first runs."""

    __slots__ = ("_unfolded", "duration", "rise", "zend")

    def __init__(self) -> None:
        """No request has been added."""
        self.rise = Series()  # bytes by which a request raised its worker while it ran
        self.zend = Series()
        self.duration = Series()
        self._unfolded = 0

    def add(self, before: int | None, peak: int | None, zend: int | None, duration_ns: int | None) -> None:
        """Take a request. OverflowError if a figure does not fit in 64 bits."""
        if peak is not None and before is not None:
            self.rise.raw.append(peak - before)
        if zend is not None:
            self.zend.raw.append(zend)
        if duration_ns is not None:
            self.duration.raw.append(duration_ns)
        self._unfolded += 1
        if self._unfolded >= RAW:
            self._unfolded = 0
            self.rise.fold()
            self.zend.fold()
            self.duration.fold()


class Side:
    """Takes the requests of one recording in the order of their ends."""

    def __init__(self, by: GroupBy, routes: Routes) -> None:
        """`by`: ROUTE, SCRIPT or URI. Both sides have to have the same `routes`."""
        self._ranking = Ranking(by, routes=routes, max_groups=_GROUPS_MAX)
        self._samples: dict[GroupKey, Samples] = {}
        self.lost = 0
        self.requests = 0
        self._groups: dict[GroupKey, Group] | None = None

    def begin(
        self, workers: Iterable[Worker], looks: Iterable[Look], *, lost: int, filtered: bool, frees: bool
    ) -> None:
        """Take what the recording has apart from requests. `filtered`, `frees`: as Ranking.begin_recording()."""
        self.lost = lost
        self._ranking.begin_recording(workers, looks, filtered=filtered, frees=frees)

    def add(self, request: Request, freed: Sequence[Release] = ()) -> None:
        """Take a request, and what it freed of earlier ones' blocks. OverflowError as Ranking.add()."""
        self.requests += 1
        if request.container is not None:
            # Without what a new container changes: replicas are one place, and so are those of another release.
            request = request._replace(container_id=None, cgroup=None, namespaces=None)
        key, run = self._ranking.add(request, freed)
        if run is not Run.LATER or not request.complete:
            return
        samples = self._samples.get(key)
        if samples is None:
            if len(self._samples) >= _GROUPS_MAX:
                return
            samples = self._samples[key] = Samples()
        samples.add(*_FIGURES(request))

    @property
    def overflow(self) -> int:
        """Requests of keys beyond the first 20,000, which are not compared."""
        return self._ranking.overflow

    def groups(self) -> dict[GroupKey, Group]:
        """The groups, without verdicts. No request may be added later."""
        if self._groups is None:
            self._groups = dict(self._ranking.figures())
        return self._groups

    def samples(self, key: GroupKey) -> Samples:
        """The figures of a group; empty if all its requests were their worker's first."""
        return self._samples.get(key) or Samples()

    def kept(self, key: GroupKey) -> array[int]:
        """The native bytes that each request of a group kept, those of each worker one after the other."""
        return array("q", [value for life in self._ranking.lives(key) for value in life])

    def verdict(self, key: GroupKey) -> Verdict:
        """The verdict on a group."""
        verdict = self._ranking.with_verdicts([(key, self.groups()[key])], self.lost)[0].verdict
        if verdict is None:
            raise ValueError("groups of this kind have no verdict")
        return verdict
