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

from tracer.analysis.ranking import Ranking
from tracer.analysis.tally import Tally
from tracer.facts import Request
from tracer.reporters.columns import COLUMNS, legend
from tracer.reporters.ranking_table import TableOptions, common_root, ranking_table, without_key
from tracer.reporters.table import in_flight, remarks, shorten, summary
from tracer.units import counted, printable

_FRAME_LINES = 8  # header, the header of the table, what it leaves out, and summary
_ROOT_WIDTH = 60
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

    def __init__(self, out: TextIO, *, options: TableOptions, top: int | None) -> None:
        """`out` is a terminal; `top` is the most rows to show, None for as many as fit."""
        self._console = Console(file=out, highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")
        self._options = options
        self._top = top
        self._last: RenderableType | None = None

    def update(self, ranking: Ranking, tally: Tally, status: Status, running: Sequence[Request] = ()) -> None:
        """Show this state, with as many rows as fit, and the first of the requests that are `running`."""
        width, height = self._console.size
        found = remarks(ranking)
        found += [in_flight(request, with_place=len(ranking.places()) > 1) for request in running[:_MOST_IN_FLIGHT]]
        explained = [legend(self._options.columns or COLUMNS)] if self._options.legend else []
        rows = max(1, height - _FRAME_LINES - sum(1 + len(text) // width for text in found + explained))
        rows = rows if self._top is None else min(rows, self._top)
        groups = ranking.groups(self._options.sort.order, rows)
        root = common_root(groups, self._options.by)
        table = ranking_table(groups, dataclasses.replace(self._options, root=root), width)
        found = without_key(groups, self._options.by) + found
        header = Text.assemble(
            ("phptrace ", "bold"),
            f"{shorten(status.target, 30)} · {status.backend} · {counted(status.watched, 'worker')}"
            f" · {status.requests_per_s:,.0f} requests/s · {status.elapsed_s:.0f} s · ",
            (f"{tally.lost} lost", "bold red" if tally.lost else ""),
            f" · scripts in {shorten(printable(root), _ROOT_WIDTH)}" if root else "",
        )
        parts: list[RenderableType] = [header, Text(status.note or "", style="yellow"), table.table]
        parts += [Text(remark) for remark in found]
        parts.append(Text(summary(tally)))
        if self._options.legend:
            explained = [legend(table.columns)]
        parts += [Text(text, style="dim") for text in [*table.remarks(), *explained]]
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
