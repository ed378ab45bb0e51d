"""The parts of a report beside its ranking: workers that died, limits, and who raised the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.analysis import high_water, last_words, limits
from tracer.analysis.high_water import HighWaterMarks
from tracer.analysis.last_words import LastRequests
from tracer.analysis.limits import Limits, is_near
from tracer.analysis.ranking import GroupBy
from tracer.analysis.routes import Routes
from tracer.facts import Ending, Request, Worker

COLUMNS = (*high_water.COLUMNS, *limits.COLUMNS, *last_words.COLUMNS)
_FINISHED = Ending.FINISHED.value


class Supplements:
    """Takes the requests of recordings one by one."""

    def __init__(self, by: GroupBy, routes: Routes) -> None:
        """`by`: how the ranking groups requests. Steps are only found for one by worker."""
        self.high_water = HighWaterMarks(routes) if by is GroupBy.WORKER else None
        self.limits = Limits(routes)
        self.last_requests = LastRequests()
        self._every = True  # each request of this recording matters

    def begin_recording(
        self, workers: Sequence[Worker], meta: Mapping[str, object], *, requests_left_out: bool, selected: bool = False
    ) -> None:
        """Take the workers and the meta data of the recording whose requests are added next.

        `requests_left_out`: it was made with a filter. `selected`: the report is about some of its requests.
        """
        host = str(meta.get("host"))
        if self.high_water is not None:
            self.high_water.begin_recording(workers, host)
        self.last_requests.begin_recording(workers, host, requests_left_out=requests_left_out, selected=selected)
        self.limits.begin_recording(meta)
        self._every = self.high_water is not None or self.last_requests.waits or self.limits.compares_times

    def add(self, request: Request, *, shown: bool = True) -> None:
        """Take one request, in the order of their ends. `shown`: the report is about it.

        Others only raise their workers, and may be the last ones of these.
        """
        # Most requests end here: a recording may have a million.
        if not self._every and request.ending == _FINISHED and not is_near(request.zend_peak, request.memory_limit):
            return
        if shown:
            self.limits.add(request)
        self.last_requests.add(request, shown=shown)
        if self.high_water is not None:
            self.high_water.add(request)
