"""The backend that is taken, and the reason that is given for it."""

from __future__ import annotations

import pytest

from tracer.backends import StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.bpf.requirements import unmet_requirements
from tracer.backends.choose import BACKENDS, BackendFactory, BackendOptions, choose
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.errors import PhptraceError, UnsupportedError


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UnsupportedError, match="^cannot use backend 'dtrace': .* Use auto, bpf or ptrace.$"):
        choose("dtrace")


def test_ptrace_is_taken_when_it_is_asked_for():
    choice = choose("ptrace")

    assert isinstance(choice.backend, PtraceBackend)
    assert choice.why == "asked for"


def test_ptrace_after_a_bpf_that_was_tried_names_the_error_of_bpf():
    choice = choose("auto", refused={"bpf": UnsupportedError("cannot use BPF: no room")})

    assert isinstance(choice.backend, PtraceBackend)
    assert choice.why == "since phptrace cannot use BPF: no room"


def test_auto_falls_back_to_ptrace_for_the_first_unmet_requirement_of_bpf():
    unmet = unmet_requirements()
    choice = choose("auto")

    assert choice.backend.name == ("ptrace" if unmet else "bpf")
    assert choice.why == (f"since phptrace {unmet[0]}" if unmet else "everything it needs is here")


class Third(PtraceBackend):
    """A backend that is neither of the two there are."""

    name = "third"


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> list[PhptraceError]:
    """Put a third backend between the two; an error that is added to the list keeps it from working on this host."""
    unmet: list[PhptraceError] = []
    factory = BackendFactory("", lambda: unmet, lambda options: Third(stacks=options.stacks))
    table = {"bpf": BACKENDS["bpf"], "third": factory, "ptrace": BACKENDS["ptrace"]}
    monkeypatch.setattr("tracer.backends.choose.BACKENDS", table)
    return unmet


def test_a_third_backend_is_taken_when_it_is_asked_for(third):
    choice = choose("third")

    assert isinstance(choice.backend, Third)
    assert choice.why == "asked for"


def test_a_third_backend_that_lacks_something_is_refused_when_it_is_asked_for(third):
    third.append(UnsupportedError("cannot use it: no third"))

    with pytest.raises(UnsupportedError, match="^cannot use it: no third$"):
        choose("third")


def test_auto_tries_the_backends_in_the_order_of_the_table(third):
    refused = {"bpf": UnsupportedError("cannot use BPF: no room")}

    second = choose("auto", refused=refused)
    assert isinstance(second.backend, Third)
    assert second.why == "since phptrace cannot use BPF: no room"

    third.append(UnsupportedError("cannot use it: no third"))
    assert choose("auto", refused=refused).why == (
        "since phptrace cannot use BPF: no room; phptrace cannot use it: no third"
    )


@pytest.mark.parametrize(("name", "kind"), [("bpf", BpfBackend), ("ptrace", PtraceBackend)])
def test_a_factory_makes_the_backend_of_its_name(name, kind):
    backend = BACKENDS[name].create(BackendOptions(stacks=StackOptions()))

    assert isinstance(backend, kind)
    assert backend.name == name
