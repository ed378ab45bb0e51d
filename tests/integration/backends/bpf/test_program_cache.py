"""The tests' own cache of BPF programs: programs that are handed out again give the same facts as new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from backend_kinds import BPF, PROGRAMS, make_backend
from fpm import Fpm
from program_cache import ProgramCache
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.backends.bpf.programs import Programs
from tracer.facts import Metric

WORKLOAD = (("hello.php", ""), ("leak.php", "1000003"), ("huge.php", "30000001"), ("fatal.php", ""), ("nosuch.php", ""))
# What depends on the clock, on what the worker's memory holds from before, or on a sample's luck.
VARIES = {"started_ns", "duration_ns", "cpu_ns", "minor_faults", "major_faults", "native_alloc_bytes",
          "native_free_bytes", "native_freed_earlier", "native_kept"}  # fmt: skip


def _facts(
    fpm: Fpm, compiled: Callable[..., Programs]
) -> tuple[list[dict[str, object]], Counter[object], list[object]]:
    """The requests of the workload, the bytes mapped by stack, and all other facts."""
    options = {"stacks": StackOptions(every=1), "compiled": compiled}
    tracer = Tracer(make_backend(BPF, **options), str(fpm.master))
    for script, query in WORKLOAD:
        fpm.get(script, QUERY_STRING=query)
    requests = tracer.next(len(WORKLOAD))
    tracer.close()
    assert tracer.requests == requests
    same = [
        {name: value for name, value in request._asdict().items() if name not in VARIES and "_before" not in name
         and "_after" not in name and "_end" not in name and "_peak" not in name}
        for request in requests
    ]  # fmt: skip
    mapped: Counter[object] = Counter()
    for growth in tracer.growths:
        if growth.metric == Metric.MAPPED.value:
            mapped[growth.nth, growth.stack] += growth.bytes
    return same, mapped, [*tracer.workers, *tracer.losses]


def test_programs_that_are_used_again_give_the_facts_that_new_ones_give(fpm: Fpm) -> None:
    for script, query in WORKLOAD * 3:
        fpm.get(script, QUERY_STRING=query)

    new = _facts(fpm, Programs)
    again = [_facts(fpm, PROGRAMS) for _ in range(2)]

    assert new[0][0]["nth"] == 1
    assert new[1] != {}
    for each in again:
        assert each == new


def test_programs_are_compiled_once_and_those_of_two_backends_are_two(fpm: Fpm) -> None:
    cache = ProgramCache()
    first, second = (cache("request.bpf.c", WORKERS_MAX=1024, POSSIBLE_CPUS=2) for _ in range(2))
    descriptors = {first.map("workers").fd, second.map("workers").fd}
    assert len(descriptors) == 2
    first.map("lost")[0] = (7919).to_bytes(8, "little")
    first.close()
    second.close()

    third = cache("request.bpf.c", WORKERS_MAX=1024, POSSIBLE_CPUS=2)

    assert third.map("workers").fd in descriptors
    assert third.map("lost")[0] == bytes(8)
    third.close()
