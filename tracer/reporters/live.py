"""The live view: a header and a ranking, redrawn while requests come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.live import Live
from rich.text import Text

from tracer.analysis.ranking import Ranking, Sort
from tracer.analysis.tally import Tally
from tracer.facts import Request
from tracer.reporters.table import in_flight, legend, ranking_table, remarks, shorten, summary
from tracer.units import counted

_FRAME_LINES = 8  # header, summary and legend
_MOST_IN_FLIGHT = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """The figures of the header."""

    target: str
    backend: str
    watched: int  # workers
    elapsed_s: float
    requests_per_s: float
    note: str | None  # a warning or hint below the header; None: there is none


class LiveView:
    """Redraws on update() and leaves the last state on the screen. Use as a context manager."""

    def __init__(self, out: TextIO, *, sort: Sort, top: int | None) -> None:
        """`out` is a terminal; `top` is the most rows to show, None for as many as fit."""
        self._console = Console(file=out, highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")
        self._sort = sort
        self._top = top
        self._last: RenderableType | None = None

    def update(self, ranking: Ranking, tally: Tally, status: Status, running: Sequence[Request] = ()) -> None:
        """Show this state, with as many rows as fit, and the first of the requests that are `running`."""
        width, height = self._console.size
        found = remarks(ranking)
        found += [in_flight(request, with_place=len(ranking.places()) > 1) for request in running[:_MOST_IN_FLIGHT]]
        rows = max(1, height - _FRAME_LINES - sum(1 + len(remark) // width for remark in found))
        rows = rows if self._top is None else min(rows, self._top)
        groups = ranking.groups(self._sort, rows)
        header = Text.assemble(
            ("phptrace ", "bold"),
            f"{shorten(status.target, 30)} · {status.backend} · {counted(status.watched, 'worker')}"
            f" · {status.requests_per_s:,.0f} requests/s · {status.elapsed_s:.0f} s · ",
            (f"{tally.lost} lost", "bold red" if tally.lost else ""),
        )
        parts: list[RenderableType] = [header, Text(status.note or "", style="yellow")]
        parts.append(ranking_table(groups, by=ranking.by, sort=self._sort, width=width))
        parts += [Text(remark) for remark in found]
        parts.append(Text(summary(tally)))
        parts.append(Text(legend(self._sort), style="dim"))
        self._last = Lines(*parts)
        self._live.update(self._last, refresh=True)

    def __enter__(self) -> LiveView:
        """Switch to the alternate screen."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the alternate screen and print the last state."""
        self._live.stop()
        if self._last is not None:
            self._console.print(self._last)
