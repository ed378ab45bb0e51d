"""A pool whose scripts behave as planted, with the native bytes of each request as they would be counted.

A worker has malloc's heap, whose pages stay resident up to the most that was ever in use, and Zend's heap, which keeps
some chunks for later. Files and shared memory are mapped as they are touched.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping

from samples import COMPLETE

from tracer.analysis.verdict.judge import Kind
from tracer.facts import Request

KIB, MIB = 1 << 10, 1 << 20
_PAGE, _CHUNK = 4 * KIB, 2 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Act:
    """The effect of one request, in bytes."""

    keeps: int = 0  # native memory
    frees: int = 0  # native memory that it uses and frees
    sticks: int = 0  # of what it frees: malloc cannot give it back, since a block above it lives on
    zend: int = 300 * KIB
    file: int = 0
    shmem: int = 0
    fatal: bool = False


class PlantedWorker:
    """A worker, from its start on."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.nth = 0
        self.runs: dict[str, int] = {}  # by script
        self._used = self._resident = 5 * MIB
        self._main_chunk = 400 * KIB
        self._chunks: list[int] = []
        self._average_chunks = 1.0
        self._file, self._shmem = 12 * MIB, MIB

    @property
    def _anon(self) -> int:
        return self._resident + self._main_chunk + sum(self._chunks)

    def serve(self, script: str, act: Act, started_ns: int) -> Request:
        before, real, file, shmem = self._anon, (1 + len(self._chunks)) * _CHUNK, self._file, self._shmem
        self.nth += 1
        self.runs[script] = self.runs.get(script, 0) + 1
        start = 40 * KIB if self.nth == 1 else 0  # what a worker's first request allocates for all later ones
        peak = max(self._resident, self._used + start + act.frees + act.keeps)
        self._used += start + act.keeps
        self._resident = max(self._resident, -(-(self._used + act.sticks) // _PAGE) * _PAGE)
        chunks = max(1, -(-act.zend // _CHUNK))
        touched = [*self._chunks, *[0] * (chunks - 1 - len(self._chunks))]
        if chunks > 1:
            self._main_chunk = _CHUNK
            touched[: chunks - 1] = [_CHUNK] * (chunks - 1)
        zend_peak = self._main_chunk + sum(touched)
        # Zend/zend_alloc.c, zend_mm_shutdown(): it keeps about as many chunks as recent requests needed.
        self._average_chunks = (self._average_chunks + chunks) / 2
        self._chunks = touched[: int(self._average_chunks - 0.1) if self._average_chunks > 1.05 else 0]
        self._file += act.file
        self._shmem += act.shmem
        duration = 5_000_000
        return COMPLETE._replace(
            pid=self.pid, nth=self.nth, uri=script, script=script, ending="fatal" if act.fatal else "finished",
            started_ns=started_ns, duration_ns=duration,
            anon_before=before, anon_after=self._anon, anon_peak=max(before, peak + zend_peak),
            file_before=file, file_after=self._file, shmem_before=shmem, shmem_after=self._shmem,
            zend_peak=act.zend, zend_real_before=real, zend_real_after=(1 + len(self._chunks)) * _CHUNK,
            native_alloc_bytes=start + act.keeps + act.frees, native_free_bytes=act.frees, native_freed_earlier=0,
            native_mapped_bytes=0, native_kept=start + act.keeps, native_released=0,
        )  # fmt: skip


# Of the n-th run of a script in its worker, from 1.
Behaviour = Callable[[int, random.Random], Act]


@dataclasses.dataclass(frozen=True, slots=True)
class Planted:
    """A script, its share of the traffic, and the verdicts on it that are right."""

    behaviour: Behaviour
    right: tuple[Kind, ...]
    weight: float = 1.0


def always(act: Act) -> Behaviour:
    return lambda _run, _chance: act


def once(first: Act, later: Act | None = None) -> Behaviour:
    """The first run in a worker acts otherwise than those after it."""
    return lambda run, _chance: first if run == 1 else later or Act()


def sometimes(share: float, act: Act, otherwise: Act | None = None) -> Behaviour:
    return lambda _run, chance: act if chance.random() < share else otherwise or Act()


HELLO = Planted(always(Act()), (Kind.STEADY,), weight=2.0)
_LEAK, _PAGE_ARRAYS = 34_304, 6 * MIB


def _fills_pattern_cache(run: int, chance: random.Random) -> Act:
    """PCRE's cache: most patterns are new at first, and after some hundred runs none is."""
    return Act(keeps=sum(900 for _ in range(16) if chance.random() < 0.98**run))


def _plateau(run: int, chance: random.Random) -> Act:
    """Frees all it takes, but what it took most stays resident."""
    most = int(chance.choice((0.2, 0.5, 0.9, 1.0)) * 40 * MIB)
    return Act(frees=most, sticks=most)


_INNOCENT = (Kind.STEADY, Kind.WARM_UP)
# Name of the case: its scripts. Each also has HELLO.
CASES: Mapping[str, Mapping[str, Planted]] = {
    "small leak": {"/leak.php": Planted(always(Act(keeps=1_072)), (Kind.LEAK,))},
    "large leak": {"/leak.php": Planted(always(Act(keeps=524_304)), (Kind.LEAK,))},
    "leak in one request of 20": {"/leak.php": Planted(sometimes(0.05, Act(keeps=_LEAK)), (Kind.LEAK,), weight=4.0)},
    "leak in a page of 6 MB": {
        "/leak.php": Planted(always(Act(keeps=_LEAK, zend=_PAGE_ARRAYS)), (Kind.LEAK,)),
        "/page.php": Planted(always(Act(zend=_PAGE_ARRAYS)), _INNOCENT),
    },
    "a page frees next to a leak": {
        "/leak.php": Planted(always(Act(keeps=_LEAK)), (Kind.LEAK,), weight=0.3),
        "/page.php": Planted(always(Act(frees=500_000, sticks=500_000)), _INNOCENT),
    },
    "static cache": {"/cache.php": Planted(once(Act(keeps=3 * MIB)), (Kind.WARM_UP,))},
    "pattern cache": {"/search.php": Planted(_fills_pattern_cache, (Kind.WARM_UP,), weight=3.0)},
    "heavy page": {"/export.php": Planted(always(Act(zend=65 * MIB)), (Kind.CHURN,), weight=0.3)},
    "heavy once": {"/month.php": Planted(once(Act(frees=110 * MIB, sticks=108 * MIB)), (Kind.HIGH_WATER,))},
    "plateau": {"/image.php": Planted(_plateau, (Kind.HIGH_WATER,))},
    "opcache": {"/app.php": Planted(once(Act(keeps=9_000, shmem=18 * MIB, file=4 * MIB)), (Kind.CACHE,))},
    "user cache": {"/cached.php": Planted(always(Act(shmem=66_000)), (Kind.CACHE,))},
    "big file": {"/download.php": Planted(always(Act(zend=2 * MIB)), (Kind.STEADY,))},
    "chunk cache next to a page that does nothing": {
        "/rows.php": Planted(sometimes(0.3, Act(zend=12 * MIB)), _INNOCENT, weight=2.0),
    },
    "memory_limit": {
        "/dies.php": Planted(always(Act(zend=32 * MIB, fatal=True)), (Kind.CHURN,), weight=0.5),
    },
    "leak and warm-up in one script": {
        "/leak.php": Planted(once(Act(keeps=2 * MIB + _LEAK), Act(keeps=_LEAK)), (Kind.LEAK,)),
    },
    "leak and high-water mark in one script": {
        "/leak.php": Planted(once(Act(keeps=_LEAK, frees=60 * MIB, sticks=60 * MIB), Act(keeps=_LEAK)), (Kind.LEAK,)),
    },
    "recycled workers": {
        "/leak.php": Planted(always(Act(keeps=_LEAK)), (Kind.LEAK,)),
        "/page.php": Planted(once(Act(keeps=90_000, zend=_PAGE_ARRAYS), Act(zend=_PAGE_ARRAYS)), _INNOCENT),
    },
}  # fmt: skip
MOST_OF_A_WORKER = {"recycled workers": 15}


def traffic(
    case: str, *, requests: int = 1_200, workers: int = 4, seed: int = 1, first_pid: int = 100
) -> Iterator[Request]:
    """Requests for the case's scripts in random order, by random workers."""
    chance = random.Random(seed)
    scripts = {"/hello.php": HELLO, **CASES[case]}
    names, weights = list(scripts), [planted.weight for planted in scripts.values()]
    most = MOST_OF_A_WORKER.get(case)
    pool = [PlantedWorker(first_pid + number) for number in range(workers)]
    for number in range(requests):
        at = chance.randrange(workers)
        if pool[at].nth == most:
            pool[at] = PlantedWorker(first_pid + workers + number)
        (name,) = chance.choices(names, weights)
        act = scripts[name].behaviour(pool[at].runs.get(name, 0) + 1, chance)
        yield pool[at].serve(name, act, 1_700_000_000_000_000_000 + number * 20_000_000)
