"""Requests of workers whose memory is simulated: the bytes that each script keeps are known.

Malloc's heap has pages that are resident up to the most that was ever in use, so that a script which frees leaves room
for one that keeps, and grows the worker next time. Zend's heap has a first chunk, and further chunks
that it keeps for some requests. Growth is seen in pages of 4 KiB.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

from samples import COMPLETE

from tracer.facts import Request

PAGE = 4096
CHUNK = 2 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """The effect of one request of a script, in bytes."""

    keeps: int = 0
    keeps_share: float = 1.0  # of its requests, which keep; the others keep nothing
    frees: int = 0  # native memory that it uses and frees
    zend: int = 0  # PHP's memory
    leaves: int = 0  # native memory that is kept until a script of the worker takes it
    takes: bool = False  # it frees all that was left
    first_use: int = 0  # native memory that a worker's first request of it keeps for good
    weight: float = 1.0  # share of the traffic


class SimulatedWorker:
    """A worker, from its start on."""

    def __init__(self, pid: int, chance: random.Random) -> None:
        self.pid = pid
        self.nth = 0
        self.used = 7 << 20
        self.left = 0  # of that, until a script takes it
        self._chance = chance
        self._resident = self.used
        self._main_chunk = 400 << 10
        self._chunks: list[int] = []  # resident bytes of further ones
        self._average_chunks = 1.0
        self._seen: set[str] = set()

    @property
    def anon(self) -> int:
        return self._resident + self._main_chunk + sum(self._chunks)

    @property
    def zend_real(self) -> int:
        return (1 + len(self._chunks)) * CHUNK

    def serve(self, name: str, script: Script) -> Request:
        before, real = self.anon, self.zend_real
        self.nth += 1
        if self.nth <= 5:
            self.used += self._chance.randrange(40_000)
        if name not in self._seen:
            self._seen.add(name)
            self.used += script.first_use
        if script.takes:
            self.used -= self.left
            self.left = 0
        freed = int(script.frees * self._chance.uniform(0.95, 1.0))
        kept = script.keeps if self._chance.random() < script.keeps_share else 0
        self.left += script.leaves
        peak = self.used + freed + kept + script.leaves
        self.used += kept + script.leaves
        self._resident = max(self._resident, -(-peak // PAGE) * PAGE)
        chunks = max(1, -(-script.zend // CHUNK))
        if script.zend:
            self._main_chunk = CHUNK
            for number in range(chunks - 1):
                if number == len(self._chunks):
                    self._chunks.append(0)
                touched = CHUNK if number < chunks - 2 else script.zend - (chunks - 1) * CHUNK
                self._chunks[number] = max(self._chunks[number], touched // PAGE * PAGE)
        # Zend/zend_alloc.c, zend_mm_shutdown(): it keeps about as many chunks as recent requests needed.
        self._average_chunks = (self._average_chunks + chunks) / 2
        del self._chunks[int(self._average_chunks - 0.1) if self._average_chunks > 1.05 else 0 :]
        return COMPLETE._replace(
            pid=self.pid,
            nth=self.nth,
            script=name,
            anon_before=before,
            anon_after=self.anon,
            zend_real_before=real,
            zend_real_after=self.zend_real,
        )


def traffic(
    scripts: Mapping[str, Script],
    requests: int,
    *,
    workers: int = 2,
    seed: int = 1,
    most: int | None = None,
    in_turn: Sequence[str] = (),
) -> Iterator[tuple[Request, SimulatedWorker]]:
    """Requests by random scripts, or by `in_turn` again and again, to random workers.

    A worker is yielded as it is after its request. It is replaced when it has served `most` requests.
    """
    chance = random.Random(seed)
    pool = [SimulatedWorker(100 + number, chance) for number in range(workers)]
    names = list(scripts)
    weights = list(itertools.accumulate(scripts[name].weight for name in names))
    for number in range(requests):
        index = chance.randrange(workers)
        if pool[index].nth == most:
            pool[index] = SimulatedWorker(1000 + number, chance)
        name = in_turn[number % len(in_turn)] if in_turn else chance.choices(names, cum_weights=weights)[0]
        yield pool[index].serve(name, scripts[name]), pool[index]
