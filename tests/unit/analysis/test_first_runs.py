"""A worker's first request of a script, of a route and of a uri."""

from __future__ import annotations

from samples import request

from tracer.analysis import first_runs, seen_workers
from tracer.analysis.first_runs import FirstRuns, Run
from tracer.analysis.routes import Routes
from tracer.analysis.seen_workers import SeenWorkers
from tracer.facts import Request

FIRST, OF_ROUTE, LATER = Run


class Runs:
    """The workers of a ranking, and the first runs of each."""

    def __init__(self, routes: Routes | None = None) -> None:
        self._workers = SeenWorkers()
        self._runs = FirstRuns(self._workers, routes)

    def of(self, request: Request) -> Run:
        return self._runs.of(request, self._workers.of(request))


def one(nth: int, script: str | None = "/a", pid: int = 2, host: str = "h", uri: str | None = "/") -> Request:
    return request(nth=nth, script=script, pid=pid, host=host, uri=uri)


def test_a_first_run_is_one_of_a_script_in_a_worker():
    runs = Runs()

    scripts = ["/a", "/a", "/b", None, "/b", None]
    found = [runs.of(one(nth, script)) for nth, script in enumerate(scripts, 1)]
    assert found == [FIRST, LATER, FIRST, FIRST, LATER, LATER]
    assert runs.of(one(2, pid=3)) is FIRST
    assert runs.of(one(2, host="i")) is FIRST


def test_the_first_run_of_a_route_is_a_kind_of_its_own():
    runs = Runs()

    uris = ["/item/1", "/item/2?q", "/cart", None, "/cart?x", None]
    assert [runs.of(one(nth, uri=uri)) for nth, uri in enumerate(uris, 1)] == [
        FIRST, LATER, OF_ROUTE, OF_ROUTE, LATER, LATER
    ]  # fmt: skip


def test_a_script_with_more_routes_than_anybody_writes_has_pages_instead(monkeypatch):
    monkeypatch.setattr(first_runs, "_ROUTES_MAX", 3)
    runs = Runs()

    found = [runs.of(one(nth, uri=uri)) for nth, uri in enumerate(["/a", "/b", "/c", "/d", "/e", "/b"], 1)]

    assert found == [FIRST, OF_ROUTE, OF_ROUTE, LATER, LATER, LATER]


def test_the_first_run_of_a_route_goes_by_what_was_learned():
    routes = Routes()
    for number in range(65):
        routes.learn(f"/shoe-{number}x")
    routes.settle()
    runs = Runs(routes)

    uris = ["/shoe-1x", "/shoe-2x", "/cart/"]
    assert [runs.of(one(nth, uri=uri)) for nth, uri in enumerate(uris, 1)] == [FIRST, LATER, OF_ROUTE]


def test_a_worker_that_got_the_pid_of_another_begins_anew():
    runs = Runs()

    assert [runs.of(each) for each in (one(1), one(2), one(1), one(2))] == [FIRST, LATER, FIRST, LATER]


def test_of_many_workers_those_that_served_nothing_for_the_longest_time_are_forgotten(monkeypatch):
    monkeypatch.setattr(seen_workers, "_WORKERS_MAX", 2)
    runs = Runs()

    found = [runs.of(each) for each in (one(1, pid=2), one(1, pid=3), one(2, pid=2), one(1, pid=4), one(3, pid=2),
                                        one(2, pid=3))]  # fmt: skip

    assert found == [FIRST, FIRST, LATER, FIRST, LATER, FIRST]


def test_of_workers_with_many_scripts_fewer_are_known(monkeypatch):
    monkeypatch.setattr(seen_workers, "_REMEMBERED_MAX", 5)
    runs = Runs()
    for pid in (2, 3):
        for nth, script in enumerate("abc", 1):
            runs.of(one(nth, script, pid))

    assert [runs.of(one(4, "a", pid)) for pid in (3, 2)] == [LATER, FIRST]
    assert runs.of(one(1, "a", pid=3)) is FIRST, "another worker with that pid"
    assert [runs.of(one(nth, script, pid=5)) for nth, script in enumerate("wxyz", 1)] == [FIRST] * 4
    assert runs.of(one(2, "a", pid=3)) is LATER


def test_a_worker_with_very_many_scripts_is_bounded(monkeypatch):
    monkeypatch.setattr(first_runs, "_SCRIPTS_MAX", 2)

    runs = Runs()

    assert [runs.of(one(nth, script)) for nth, script in enumerate("abcca", 1)] == [FIRST] * 4 + [LATER]
