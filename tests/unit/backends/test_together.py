"""Several backends as one: all facts of each, the order of attaching, and nothing left attached."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from samples import request

from tracer.backends import Backend
from tracer.backends.together import Together
from tracer.errors import IncompleteError, UnsupportedError
from tracer.facts import Fact, Request

NOTHING: list[Fact] = []


class Scripted:
    """A backend whose polls return what it is given, or raise it. It notes in `events` what is done to it."""

    def __init__(self, name: str, events: list[str], *polls: list[Fact] | Exception, refused: str = "") -> None:
        self.name = name
        self.lacking: Sequence[str] = (f"not measured: {name}",)
        self.watched = len(name)
        self.masters = frozenset({len(name)})
        self._events = events
        self._polls = list(polls)
        self._refused = refused

    def attach(self, targets: Sequence[object]) -> None:
        self._events.append(f"{self.name} attaches to {len(targets)}")
        if self._refused:
            raise UnsupportedError(self._refused)

    def poll(self, timeout_s: float) -> list[Fact]:
        found = self._polls.pop(0) if self._polls else NOTHING
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> list[Fact]:
        self._events.append(f"{self.name} closes")
        return [request(uri=f"/last of {self.name}")]


def made(first: Scripted, second: Scripted) -> Together:
    backends: list[Backend] = [first, second]
    return Together([(backends[0], []), (backends[1], [])])


def uris(facts: list[Fact]) -> list[str | None]:
    return [fact.uri for fact in facts if isinstance(fact, Request)]


def test_the_preferred_backend_is_attached_last_and_closed_first():
    events: list[str] = []
    both = made(Scripted("bpf", events), Scripted("ptrace", events))

    both.attach([])
    last = both.close()

    assert events == ["ptrace attaches to 0", "bpf attaches to 0", "bpf closes", "ptrace closes"]
    assert uris(last) == ["/last of bpf", "/last of ptrace"]


def test_nothing_stays_attached_if_the_preferred_backend_is_refused():
    events: list[str] = []
    both = made(Scripted("bpf", events, refused="no room"), Scripted("ptrace", events))

    with pytest.raises(UnsupportedError, match="no room"):
        both.attach([])

    assert events == ["ptrace attaches to 0", "bpf attaches to 0", "ptrace closes"]
    assert both.attaching == "bpf"


def test_a_poll_returns_the_facts_of_both():
    both = made(Scripted("bpf", [], [request(uri="/a")]), Scripted("ptrace", [], [request(uri="/b")]))

    assert uris(both.poll(0.0)) == ["/a", "/b"]
    assert both.poll(0.0) == []


def test_facts_that_were_taken_when_the_other_backend_failed_are_not_lost():
    both = made(Scripted("bpf", [], [request(uri="/a")]), Scripted("ptrace", [], IncompleteError("it has ended")))

    with pytest.raises(IncompleteError):
        both.poll(0.0)

    assert uris(both.close()) == ["/a", "/last of bpf", "/last of ptrace"]


def test_watched_workers_are_summed_and_a_lack_of_one_backend_names_it():
    both = made(Scripted("bpf", []), Scripted("ptrace", []))

    assert (both.name, both.watched, both.masters) == ("bpf+ptrace", 9, {3, 6})
    assert list(both.lacking) == ["not measured: bpf", "not measured: ptrace [ptrace, process ]"]
