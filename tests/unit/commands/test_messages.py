"""The sentences of a recording on processes that were meant and not traced: they are untrusted, and only a few."""

from __future__ import annotations

import pytest

from tracer.commands.flame_input import RecordingNotes
from tracer.commands.messages import not_traced


@pytest.mark.parametrize("meta", [{}, {"not_traced": None}, {"not_traced": "text"}, {"not_traced": [7919, None]}])
def test_a_recording_that_names_nobody_has_no_sentence(meta):
    assert not_traced(meta) == []


def test_of_many_sentences_ten_are_shown():
    sentences = [f"process {pid} is not traced" for pid in range(13)]

    assert not_traced({"not_traced": sentences}) == [*sentences[:10], "and 3 more"]


def test_a_flame_names_the_processes_that_were_not_traced():
    notes = RecordingNotes()
    notes.add({"not_traced": ["process 7919 is not traced: it is ARM"], "lacking": ["not measured: Zend's heap"]})

    assert notes.lacking == ["not measured: Zend's heap", "process 7919 is not traced: it is ARM"]
