"""Which backend is taken, and the reason that is given for it."""

from __future__ import annotations

import pytest

from tracer.backends import StackOptions
from tracer.backends.bpf.backend import BpfBackend
from tracer.backends.bpf.requirements import unmet_requirements
from tracer.backends.choose import BACKENDS, BackendOptions, choose
from tracer.backends.ptrace.backend import PtraceBackend
from tracer.errors import UnsupportedError


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UnsupportedError, match="no backend 'dtrace'. Use auto or bpf or ptrace"):
        choose("dtrace")


def test_ptrace_is_taken_when_it_is_asked_for():
    choice = choose("ptrace")

    assert isinstance(choice.backend, PtraceBackend)
    assert choice.why == "asked for"


def test_ptrace_after_a_bpf_that_was_tried_names_the_error_of_bpf():
    assert choose("ptrace", refused=UnsupportedError("no room")).why == "since BPF cannot be used: no room"


def test_auto_falls_back_to_ptrace_for_the_first_unmet_requirement_of_bpf():
    unmet = unmet_requirements()
    choice = choose("auto")

    assert choice.backend.name == ("ptrace" if unmet else "bpf")
    assert choice.why == (f"since BPF cannot be used: {unmet[0]}" if unmet else "everything it needs is here")


@pytest.mark.parametrize(("name", "kind"), [("bpf", BpfBackend), ("ptrace", PtraceBackend)])
def test_a_factory_makes_the_backend_of_its_name(name, kind):
    backend = BACKENDS[name].create(BackendOptions(stacks=StackOptions()))

    assert isinstance(backend, kind)
    assert backend.name == name
