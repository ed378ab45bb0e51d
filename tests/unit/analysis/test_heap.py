"""Figures of one look at a heap, and the changes between two."""

from __future__ import annotations

import dataclasses

from heap_looks import LOOK, MALLOC, ZEND

from tracer.analysis.heap import Figure, SizeClass, figures, size_classes


def test_native_memory_is_not_zend_s_and_unexplained_memory_is_not_malloc_s_either():
    assert LOOK.native == 20_000_003 - 3_000_017
    assert LOOK.unexplained == 20_000_003 - 3_000_017 - 9_000_011 - 700_001


def test_an_unknown_figure_stays_unknown_in_figures_derived_from_it():
    without_zend = dataclasses.replace(LOOK, zend=None)
    without_malloc = dataclasses.replace(LOOK, malloc=None)
    without_pages = dataclasses.replace(LOOK, malloc=dataclasses.replace(MALLOC, resident=None))

    assert (without_zend.native, without_zend.unexplained) == (None, None)
    assert (without_malloc.native, without_malloc.unexplained) == (LOOK.native, None)
    assert without_pages.unexplained is None
    assert {figure.name: figure.bytes for figure in figures(without_malloc)}["malloc_in_use"] is None


def test_figures_of_one_look_have_no_change():
    found = figures(LOOK)

    assert found[0] == Figure("anon", 20_000_003, None)
    assert {figure.change for figure in found} == {None}


def test_the_change_of_a_figure_is_its_difference_and_unknown_if_one_of_both_is():
    later = dataclasses.replace(
        LOOK, anon=LOOK.anon + 4096, malloc=dataclasses.replace(MALLOC, in_use=MALLOC.in_use + 34_304), zend=None
    )

    changes = {figure.name: figure.change for figure in figures(later, LOOK)}

    assert (changes["anon"], changes["malloc_in_use"], changes["malloc_free"]) == (4096, 34_304, 0)
    assert (changes["zend_resident"], changes["native"]) == (None, None)


def test_the_size_classes_that_hold_most_are_first():
    found = size_classes(LOOK)

    assert found == [SizeClass(1040, 1009, None), SizeClass(48, 2003, None), SizeClass(32, 3001, None)]
    assert [one.bytes for one in found] == [1_049_360, 96_144, 96_032]
    assert found[0].change_bytes is None


def test_the_size_class_that_grew_most_between_two_looks_is_first_and_unchanged_ones_are_left_out():
    later = dataclasses.replace(LOOK, malloc=dataclasses.replace(MALLOC, sizes={1040: 2736, 48: 2003, 32: 4402, 64: 7}))
    before = dataclasses.replace(LOOK, malloc=dataclasses.replace(MALLOC, sizes={**MALLOC.sizes, 80: 5}))

    found = size_classes(later, before)

    assert found == [SizeClass(1040, 2736, 1727), SizeClass(32, 4402, 1401), SizeClass(64, 7, 7), SizeClass(80, 0, -5)]
    assert [one.change_bytes for one in found] == [1_796_080, 44_832, 448, -400]


def test_size_classes_are_unknown_with_malloc_s_heap():
    unknown = dataclasses.replace(LOOK, malloc=None)

    assert (size_classes(unknown), size_classes(LOOK, unknown), size_classes(unknown, LOOK)) == ([], [], [])


def test_restrictions_of_the_figures_are_noted():
    busy = dataclasses.replace(
        LOOK,
        malloc=None,
        zend=dataclasses.replace(ZEND, settled=False, notes=["of two kinds"]),
        lacking={"malloc": "its malloc is musl"},
    )

    assert LOOK.notes == []
    assert busy.notes == [
        "malloc: unknown, since its malloc is musl",
        "Zend: of two kinds",
        "Zend: the process changed it during the look, so figures are approximate",
    ]
