"""The cost of call stacks for a worker: each metric at two rates, on top of the default probes, as in single.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.pools import pools
from benchmarks.single import REQUESTS, costs_us, on_one_cpu
from tracer.backends import NativeOptions, StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.targets.resolve import targets

# The metric that is not measured is sampled almost never.
_SELDOM, _SLOWLY = 65536, 1
_VARIANTS: dict[str, StackOptions | None] = {
    "plain": None,
    "default": None,
    "rss1": StackOptions(every=1, hz=_SLOWLY),
    "rss16": StackOptions(every=16, hz=_SLOWLY),
    "zend99": StackOptions(every=_SELDOM, hz=99),
    "zend999": StackOptions(every=_SELDOM, hz=999),
    "both": StackOptions(),
}
_SHOWN = {
    "rss1": "rss, every page",
    "rss16": "rss, every 16 pages",
    "zend99": "zend, 99 Hz",
    "zend999": "zend, 999 Hz",
    "both": "record --stacks as it is",
}
_SCRIPTS = (("noop.php", "no-op", REQUESTS), ("work.php", "~10 ms", 20), ("faults.php", "7,300 faults", 20))


def figures(rounds: int) -> Iterator[Figure]:
    with pools(*_VARIANTS, workers=1) as found, contextlib.ExitStack() as attached:
        backends = []
        for name, options in _VARIANTS.items():
            if name != "plain":
                backends.append(BpfBackend(stacks=options, native=NativeOptions()))
                backends[-1].attach(targets([str(found[name].master)]))
                attached.callback(backends[-1].close)
        attached.enter_context(on_one_cpu(found))
        for script, label, requests in _SCRIPTS:
            spent = costs_us(found, script, requests, rounds, lambda _: [backend.poll(0) for backend in backends])
            yield Figure(f"{label}: CPU of a request, untraced", tuple(spent["plain"]), "µs/req")
            yield Figure(f"{label}: CPU added, default probes", _added(spent, "default"), "µs/req")
            for name, shown in _SHOWN.items():
                yield Figure(f"{label}: CPU added, stacks: {shown}", _added(spent, name), "µs/req")


def _added(spent: dict[str, list[float]], name: str) -> tuple[float, ...]:
    return tuple(ours - theirs for ours, theirs in zip(spent[name], spent["plain"], strict=True))
