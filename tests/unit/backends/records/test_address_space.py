"""Bytes that each call stack added to the address space of one worker, from the worker's memory calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import FIND, MAIN, PROPERTY, QUERY

from tracer.backends.records.address_space import AddressSpace, MemoryCall
from tracer.backends.records.stack_structs import Call
from tracer.facts import GIVEN_BACK, Stack

PAGE = 4096
MIB = 1 << 20
CHUNK = 2 * MIB
BASE = 0x7F00_0000_0000
A, B, BACK = (MAIN, FIND), (MAIN, FIND, QUERY), (GIVEN_BACK,)
OTHER = (QUERY,)


class Space:
    """An AddressSpace with the calls by name; each gives {stack: bytes}."""

    def __init__(self) -> None:
        self._space = AddressSpace()
        self.nth = 7
        self.script_ended = False

    def _changed(self, call: MemoryCall, stack: Stack) -> dict[Stack, int]:
        changes = Counter[Stack]()
        for changed, size in self._space.changes(self.nth, call, stack, script_ended=self.script_ended):
            changes[changed] += size
        return {changed: size for changed, size in changes.items() if size}

    def mmap(self, address: int, size: int, stack: Stack = A) -> dict[Stack, int]:
        return self._changed(MemoryCall(Call.MMAP, address, size, 0, 0), stack)

    def munmap(self, address: int, size: int, stack: Stack = B) -> dict[Stack, int]:
        return self._changed(MemoryCall(Call.MUNMAP, address, size, 0, 0), stack)

    def mremap(self, address: int, size: int, to: int, to_size: int, stack: Stack = B) -> dict[Stack, int]:
        return self._changed(MemoryCall(Call.MREMAP, address, size, to, to_size), stack)

    def brk(self, to: int, stack: Stack = A, *, at_start: int = BASE) -> dict[Stack, int]:
        return self._changed(MemoryCall(Call.BRK, at_start, 0, to, 0), stack)


@pytest.fixture
def space() -> Space:
    return Space()


def test_mapped_memory_is_attributed_to_the_stack_that_mapped_it(space):
    assert space.mmap(BASE, 3 * PAGE) == {A: 3 * PAGE}


def test_a_part_of_a_page_is_a_page(space):
    assert space.mmap(BASE, 2 * PAGE + 1) == {A: 3 * PAGE}
    assert space.munmap(BASE, PAGE + 1) == {A: -2 * PAGE}


def test_memory_that_a_script_unmaps_is_taken_off_the_stack_that_mapped_it(space):
    space.mmap(BASE, 13 * PAGE)

    assert space.munmap(BASE + 2 * PAGE, 3 * PAGE) == {A: -3 * PAGE}


def test_a_chunk_of_zends_heap_that_was_mapped_too_large_and_trimmed_counts_once(space):
    unaligned = BASE + 5 * PAGE
    changes = Counter[Stack]()

    # zend_mm_chunk_alloc_int(): map, unaligned: unmap, map more, trim before and behind.
    for changed in (
        space.mmap(unaligned, CHUNK),
        space.munmap(unaligned, CHUNK),
        space.mmap(unaligned, 2 * CHUNK - PAGE),
        space.munmap(unaligned, CHUNK - 5 * PAGE),
        space.munmap(BASE + 2 * CHUNK, 4 * PAGE),
    ):
        changes.update(changed)

    assert changes == {A: CHUNK}


def test_memory_of_the_script_that_is_unmapped_after_it_is_given_back(space):
    space.mmap(BASE, 7 * PAGE)
    space.script_ended = True

    assert space.munmap(BASE, 7 * PAGE) == {BACK: -7 * PAGE}


def test_memory_mapped_and_unmapped_after_the_script_adds_up_to_zero(space):
    space.script_ended = True
    space.mmap(BASE, 7 * PAGE)

    assert space.munmap(BASE, 5 * PAGE) == {A: -5 * PAGE}


def test_memory_that_an_earlier_request_mapped_is_given_back(space):
    space.mmap(BASE, 7 * PAGE)
    space.nth += 1

    assert space.munmap(BASE, 7 * PAGE) == {BACK: -7 * PAGE}


def test_memory_mapped_before_tracing_began_is_given_back(space):
    space.mmap(BASE + 3 * PAGE, 2 * PAGE)

    assert space.munmap(BASE, 11 * PAGE) == {A: -2 * PAGE, BACK: -9 * PAGE}


def test_unmapped_memory_is_forgotten(space):
    space.mmap(BASE, 7 * PAGE)
    space.munmap(BASE, 7 * PAGE)

    assert space.munmap(BASE, 7 * PAGE) == {BACK: -7 * PAGE}


def test_a_fixed_mapping_over_anothers_takes_its_place(space):
    space.mmap(BASE, 11 * PAGE, A)

    assert space.mmap(BASE + 2 * PAGE, 3 * PAGE, B) == {A: -3 * PAGE, B: 3 * PAGE}
    assert space.munmap(BASE, 11 * PAGE) == {A: -8 * PAGE, B: -3 * PAGE}


def test_a_fixed_mapping_over_what_an_earlier_request_mapped_gives_that_back(space):
    space.mmap(BASE, 11 * PAGE, A)
    space.nth += 1

    assert space.mmap(BASE, 13 * PAGE, A) == {BACK: -11 * PAGE, A: 13 * PAGE}


def test_the_stack_that_lengthens_a_mapping_in_place_gets_the_added_bytes(space):
    space.mmap(BASE, 3 * PAGE, A)

    assert space.mremap(BASE, 3 * PAGE, BASE, 8 * PAGE, B) == {B: 5 * PAGE}
    assert space.munmap(BASE, 8 * PAGE) == {A: -3 * PAGE, B: -5 * PAGE}


def test_moved_memory_stays_with_the_stack_that_mapped_it(space):
    space.mmap(BASE, 3 * PAGE, A)

    assert space.mremap(BASE, 3 * PAGE, BASE + MIB, 8 * PAGE, B) == {B: 5 * PAGE}
    assert space.munmap(BASE + MIB, 3 * PAGE) == {A: -3 * PAGE}
    assert space.munmap(BASE + MIB + 3 * PAGE, 5 * PAGE) == {B: -5 * PAGE}


def test_a_mapping_moved_over_anothers_takes_its_place(space):
    space.mmap(BASE, 3 * PAGE, A)
    space.mmap(BASE + MIB, 2 * PAGE, OTHER)

    assert space.mremap(BASE, 3 * PAGE, BASE + MIB, 3 * PAGE, B) == {OTHER: -2 * PAGE}
    assert space.munmap(BASE + MIB, 3 * PAGE) == {A: -3 * PAGE}


def test_a_mapping_moved_over_what_an_earlier_request_mapped_gives_that_back(space):
    space.mmap(BASE + MIB, 2 * PAGE, A)
    space.nth += 1
    space.mmap(BASE, 7 * PAGE, A)

    assert space.mremap(BASE, 7 * PAGE, BASE + MIB, 5 * PAGE, B) == {BACK: -2 * PAGE, A: -2 * PAGE}


def test_a_moved_mapping_leaves_nothing_at_its_old_place(space):
    space.mmap(BASE, 3 * PAGE, A)
    space.mremap(BASE, 3 * PAGE, BASE + MIB, 3 * PAGE, B)

    assert space.mmap(BASE, 5 * PAGE, B) == {B: 5 * PAGE}


def test_the_cut_part_of_a_mapping_is_taken_off_the_stack_that_mapped_it(space):
    space.mmap(BASE, 5 * PAGE, A)
    space.mmap(BASE + 5 * PAGE, 6 * PAGE, B)

    assert space.mremap(BASE, 11 * PAGE, BASE, 2 * PAGE, OTHER) == {A: -3 * PAGE, B: -6 * PAGE}
    assert space.munmap(BASE, 2 * PAGE) == {A: -2 * PAGE}


def test_the_cut_part_of_an_unknown_mapping_is_given_back(space):
    space.mmap(BASE + 8 * PAGE, PAGE, A)

    assert space.mremap(BASE, 13 * PAGE, BASE + MIB, 2 * PAGE, B) == {A: -PAGE, BACK: -10 * PAGE}


def test_a_single_page_cut_off_an_unknown_mapping_is_given_back(space):
    assert space.mremap(BASE, 3 * PAGE, BASE, 2 * PAGE, B) == {BACK: -PAGE}


def test_only_the_added_part_of_a_lengthened_unknown_mapping_is_growth(space):
    assert space.mremap(BASE, 3 * PAGE, BASE + MIB, 5 * PAGE, B) == {B: 2 * PAGE}
    assert space.munmap(BASE + MIB, 5 * PAGE) == {B: -2 * PAGE, BACK: -3 * PAGE}


def test_the_break_goes_up_from_where_it_was_when_the_request_began(space):
    assert space.brk(BASE + 33 * PAGE) == {A: 33 * PAGE}
    assert space.brk(BASE + 44 * PAGE, B) == {B: 11 * PAGE}


def test_a_break_that_goes_down_is_taken_off_the_stack_that_moved_it_up(space):
    space.brk(BASE + 7 * PAGE, A)
    space.brk(BASE + 18 * PAGE, B)

    assert space.brk(BASE + 2 * PAGE, OTHER) == {A: -5 * PAGE, B: -11 * PAGE}


def test_the_break_below_where_the_request_began_is_given_back(space):
    assert space.brk(BASE - 3 * PAGE) == {BACK: -3 * PAGE}
    assert space.brk(BASE - PAGE) == {A: 2 * PAGE}


def test_a_question_for_the_break_changes_nothing(space):
    assert space.brk(BASE) == {}
    assert space.brk(BASE + PAGE) == {A: PAGE}
    assert space.brk(BASE + PAGE) == {}


def test_a_request_starts_from_the_break_as_it_finds_it_and_gives_back_what_earlier_ones_left(space):
    space.brk(BASE + 7 * PAGE)
    space.nth += 1

    assert space.brk(BASE + 9 * PAGE, B, at_start=BASE + 7 * PAGE) == {B: 2 * PAGE}
    assert space.brk(BASE + 5 * PAGE, B, at_start=BASE + 7 * PAGE) == {B: -2 * PAGE, BACK: -2 * PAGE}


def test_a_move_of_the_break_between_requests_is_attributed_to_no_stack(space):
    space.brk(BASE + 7 * PAGE)
    space.nth += 1

    assert space.brk(BASE + 13 * PAGE, B, at_start=BASE + 11 * PAGE) == {B: 2 * PAGE}


@PROPERTY
@given(st.lists(st.tuples(st.integers(1, 997), st.sampled_from([A, B]), st.booleans()), max_size=31))
def test_the_changes_add_up_to_the_move_of_the_break(steps):
    space, last, at_start = Space(), BASE, BASE
    changed = 0
    for pages, stack, next_request in steps:
        if next_request:
            space.nth, at_start = space.nth + 1, last
        last = BASE + pages * PAGE

        changed += sum(space.brk(last, stack, at_start=at_start).values())

    assert changed == last - BASE


class Pages:
    """The same, page by page. The first ones were mapped before tracing began."""

    UNKNOWN = range(11)
    LAST = 71

    def __init__(self) -> None:
        self.owners: dict[int, tuple[int, bool, Stack] | None] = dict.fromkeys(self.UNKNOWN)

    def unmap(self, pages: Iterable[int], now: tuple[int, bool]) -> Counter[Stack]:
        changes = Counter[Stack]()
        for page in pages:
            owner = self.owners.pop(page)
            changes[owner[2] if owner is not None and owner[:2] == now else BACK] -= 1
        return changes

    def map(self, pages: range, now: tuple[int, bool], stack: Stack) -> Counter[Stack]:
        changes = Counter[Stack]()
        for page in pages:
            if page in self.owners:
                changes.update(self.unmap(range(page, page + 1), now))
            self.owners[page] = (*now, stack)
            changes[stack] += 1
        return changes

    def move(self, pages: range, to: range, now: tuple[int, bool], stack: Stack) -> Counter[Stack]:
        common = min(len(pages), len(to))
        changes = self.unmap(pages[common:], now)
        moved = [self.owners.pop(page) for page in pages[:common]]
        changes.update(self.unmap([page for page in to[:common] if page in self.owners], now))
        for page, owner in zip(to, moved, strict=False):
            self.owners[page] = owner
        changes.update(self.map(to[common:], now, stack))
        return changes


PLACE = st.tuples(st.integers(0, Pages.LAST), st.integers(1, 13)).map(lambda both: range(both[0], sum(both)))
STEP = st.tuples(st.sampled_from(["mmap", "munmap", "mremap"]), PLACE, PLACE, st.booleans(), st.sampled_from([A, B]))


@PROPERTY
@given(st.lists(st.tuples(STEP, st.sampled_from([0, 0, 0, 1, 2])), max_size=61))
def test_every_change_agrees_with_a_model_of_every_page(steps):
    space, model = Space(), Pages()
    for (what, pages, other, in_place, stack), passing in steps:
        space.script_ended = passing == 1
        space.nth += passing == 2
        now = space.nth, space.script_ended
        before = len(model.owners)
        at, size = BASE + pages.start * PAGE, len(pages) * PAGE
        to = range(pages.start, pages.start + len(other)) if in_place else other
        if what == "mmap" and not any(page in model.owners and model.owners[page] is None for page in pages):
            expected = model.map(pages, now, stack)
            found = space.mmap(at, size, stack)
        elif what == "munmap" and all(page in model.owners for page in pages):
            expected = model.unmap(pages, now)
            found = space.munmap(at, size, stack)
        elif (
            what == "mremap"
            and all(page in model.owners for page in pages)
            and not any(page in model.owners for page in (to[len(pages) :] if in_place else ()))
            and (in_place or not set(pages) & set(to))
            and (in_place or not any(model.owners.get(page, now) is None for page in (*pages, *to)))
        ):
            expected = model.move(pages, to, now, stack)
            found = space.mremap(at, size, BASE + to.start * PAGE, len(to) * PAGE, stack)
        else:
            continue

        assert found == {changed: count * PAGE for changed, count in expected.items() if count}
        assert sum(found.values()) == (len(model.owners) - before) * PAGE
