"""Where the best way is not open, the second best gives the same figures."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from code_text import php_code
from fpm import ONE_WORKER, Fpm
from kernel_objects import PERF_EVENT, UPROBE_LINK, kernel_objects
from machine import lacking
from php_builds import without_usdt_probes
from tracing import Tracer

from tracer.backends import StackOptions
from tracer.backends.bpf import uprobe_multi
from tracer.facts import Metric, Request
from tracer.targets import kernel
from tracer.targets.resolve import targets

# No command of bpf(2): the kernel answers as one does that has no links.
_UNKNOWN_COMMAND = 9999


@pytest.fixture(params=[UPROBE_LINK, PERF_EVENT])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of the probes that are set."""
    if request.param == PERF_EVENT:
        monkeypatch.setattr(uprobe_multi, "_LINK_CREATE", _UNKNOWN_COMMAND)
    elif not kernel.has_uprobe_multi():
        lacking("this kernel has no uprobe_multi links. Use Linux 6.6 or later.")
    return str(request.param)


def _figures(request: Request) -> tuple[object, ...]:
    """The columns that two runs of one script in two fresh workers have in common."""
    return (
        request.ending, request.notes, request.nth, request.uri, request.method, request.status,
        request.memory_limit, request.zend_used_end, request.zend_peak, request.zend_real_peak,
        request.map_calls, request.map_bytes, request.unmap_calls, request.brk_calls, request.brk_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("stacks", [None, StackOptions(every=1)], ids=["without stacks", "with stacks"])
def test_probes_by_perf_events_where_the_kernel_refuses_links_give_the_same_figures(
    start_fpm: Callable[..., Fpm],
    trace: Callable[..., Tracer],
    monkeypatch: pytest.MonkeyPatch,
    php_fpm: str,
    tmp_path: Path,
    stacks: StackOptions | None,
) -> None:
    if not kernel.has_uprobe_multi():
        lacking("this kernel has no uprobe_multi links. Use Linux 6.6 or later.")
    found: list[list[tuple[object, ...]]] = []
    names: list[set[str | None]] = []
    probes: list[Counter[str]] = []
    copy = str(shutil.copy(php_fpm, tmp_path / "php-fpm"))  # which nobody else traces
    for command in (uprobe_multi._LINK_CREATE, _UNKNOWN_COMMAND):
        monkeypatch.setattr(uprobe_multi, "_LINK_CREATE", command)
        fpm = start_fpm("opcache.enable=0", binary=copy, www=ONE_WORKER)
        (worker,) = fpm.workers()
        untouched = php_code(worker)
        before = kernel_objects()
        tracer = trace(str(fpm.master), stacks=stacks, native=None)
        probes.append(kernel_objects() - before)
        for script in ("hello.php", "exit.php", "fatal.php", "brk.php", "brk.php"):
            fpm.get(script)
        found.append([_figures(request) for request in tracer.next(5)])
        tracer.close()
        names.append({one.stack[-1].name for one in tracer.growths if one.metric == Metric.MAPPED.value})

        assert php_code(worker) == untouched
        assert not set(kernel_objects() - before) & {UPROBE_LINK, PERF_EVENT}
        assert tracer.lost == 0

    links, events = probes
    assert found[0] == found[1]
    assert names[0] == names[1]
    assert (stacks is None) or {"malloc", "realloc"} <= names[0]
    # Page faults and the CPU clock are sampled by perf events in any case.
    assert links[UPROBE_LINK] >= 9
    assert events[PERF_EVENT] - links[PERF_EVENT] == links[UPROBE_LINK]
    assert events[UPROBE_LINK] == 0


def test_a_php_without_usdt_probes_is_traced_by_the_return_of_its_shutdown(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], php_fpm: str, tmp_path: Path, kind: str
) -> None:
    fpm = start_fpm(binary=without_usdt_probes(php_fpm, tmp_path / "php-fpm"), www=ONE_WORKER)
    (worker,) = fpm.workers()
    (target,) = targets([str(fpm.master)])
    assert target.php.hooks is not None
    assert target.php.hooks.end_is_return
    untouched = php_code(worker)
    before = kernel_objects()
    tracer = trace(str(fpm.master), native=None)
    probes = kernel_objects() - before
    for number in range(3):
        fpm.get("hello.php", REQUEST_URI=f"/{number}")
    requests = tracer.next(3)
    tracer.close()

    assert probes[kind] >= 9
    assert [(one.uri, one.nth, one.complete) for one in requests] == [(f"/{n}", n + 1, True) for n in range(3)]
    assert tracer.requests == requests
    assert php_code(worker) == untouched


def test_calls_counted_in_the_kernel_agree_with_the_address_space(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), calls_by_tracepoint=True)
    for script in ("brk.php", "brk.php", "gd.php"):
        fpm.get(script)
    _, brk, gd = tracer.next(3)

    for request in (brk, gd):
        assert None not in (request.map_bytes, request.unmap_bytes, request.brk_bytes, request.vm_after)
        net = request.map_bytes - request.unmap_bytes + request.brk_bytes  # type: ignore[operator]
        assert net == request.vm_after - request.vm_before  # type: ignore[operator]
    assert (brk.map_calls, brk.unmap_calls) == (6, 5)


def test_the_fallback_says_what_it_costs_everybody(fpm: Fpm, trace: Callable[..., Tracer]) -> None:
    tracer = trace(str(fpm.master), calls_by_tracepoint=True)

    assert any("every process on this host pays" in lack for lack in tracer.backend.lacking)
