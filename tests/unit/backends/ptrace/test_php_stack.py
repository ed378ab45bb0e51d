"""PHP's call stack, read from memory of this process that has PHP's layout (Zend/zend_compile.h, 8.2)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY, within
from zend_memory import LAYOUT, ZendMemory

from tracer.backends.ptrace.php_stack import Function, Walked, Walker
from tracer.backends.ptrace.stack_records import StackSender
from tracer.backends.ptrace.syscall_tracer import MemoryCallMade
from tracer.backends.records.growth_decoder import GrowthDecoder
from tracer.backends.records.request_structs import HEAD
from tracer.backends.records.stack_structs import (
    FUNCTION,
    HASH_NO_PHP,
    MEMORY_CALL,
    STACK,
    Call,
    FunctionFlag,
    FunctionType,
    StackEventKind,
    StackFlag,
)
from tracer.facts import NO_PHP, STACK_LOST, TRUNCATED, UNREADABLE, Frame, Growth

PID = os.getpid()
FILE = "/srv/app/Repo.php"
UNMAPPED = 0x13  # in the first page, where nothing is mapped
USER_FUNCTION = Function(FunctionType.USER, FunctionFlag.CLASSLESS, 3, b"find", b"", FILE.encode())
BASE = 0x7F00_0000_0000


@pytest.fixture
def memory() -> Iterator[ZendMemory]:
    made = ZendMemory()
    yield made
    made.close()


@pytest.fixture
def walker(memory: ZendMemory) -> Walker:
    return Walker(PID, LAYOUT, memory.current, 127)


def shown(walker: Walker, walked: Walked) -> list[tuple[bytes, int] | None]:
    """Return (class and name, line) of each frame, innermost first."""
    found: list[tuple[bytes, int] | None] = []
    for frame in walked.frames:
        function = walker.function(frame[0]) if frame is not None else None
        assert (function is None) == (frame is None)
        if frame is None or function is None:
            found.append(None)
        else:
            found.append((function.class_name + b"::" * bool(function.class_name) + function.name, frame[1]))
    return found


def only_function(memory: ZendMemory, walker: Walker, function: int) -> Function | None:
    """Return the function that a walk finds if it is the only one that runs."""
    memory.run(memory.call(function, 0))
    [frame] = walker.walk().frames
    assert frame is not None
    return walker.function(frame[0])


def test_a_walk_while_no_php_runs_has_no_frames(walker):
    assert walker.walk() == Walked((), StackFlag(0))


def test_a_stack_has_its_frames_innermost_first_with_their_current_lines(memory, walker):
    main, find = memory.user(None, (1, 13)), memory.user(b"find", (83, 89, 97), scope=memory.scope(b"Repo"))
    outer = memory.call(main, 0, memory.opline(main, 1))
    memory.run(memory.call(find, outer, memory.opline(find, 2)))
    walked = walker.walk()

    assert shown(walker, walked) == [(b"Repo::find", 97), (b"", 13)]
    assert walked.flags == StackFlag(0)


def test_an_internal_function_on_top_has_no_file_and_no_line(memory, walker):
    main, query = memory.user(None), memory.internal(b"query", memory.scope(b"PDO"))
    memory.run(memory.call(query, memory.call(main, 0, memory.opline(main, 0)), UNMAPPED))
    walked = walker.walk()

    assert shown(walker, walked) == [(b"PDO::query", 0), (b"", 3)]
    assert walker.function(walked.frames[0][0]) == Function(1, FunctionFlag.FILELESS, 0, b"query", b"PDO", b"")


def test_a_user_function_has_its_file_and_first_line(memory, walker):
    assert only_function(memory, walker, memory.user(b"find")) == USER_FUNCTION


@pytest.mark.parametrize("kind", [FunctionType.USER, FunctionType.EVAL])
def test_a_files_own_code_is_nameless(memory, walker, kind):
    found = only_function(memory, walker, memory.user(None, kind=kind))

    assert found is not None
    assert (found.type, found.name) == (kind, b"")
    assert found.flags == FunctionFlag.NAMELESS | FunctionFlag.CLASSLESS


def test_a_dummy_frame_of_the_engine_is_none(memory, walker):
    main = memory.user(None)
    memory.run(memory.call(0, memory.call(main, 0, memory.opline(main, 0))))

    assert shown(walker, walker.walk()) == [None, (b"", 3)]


def test_a_fibers_fake_function_is_none(memory, walker):
    memory.run(memory.call(memory.internal(None), 0))

    assert walker.walk() == Walked((None,), StackFlag(0))


def test_the_placeholder_of_a_yield_from_is_the_generator_it_delegates_to(memory, walker):
    main, inner = memory.user(None), memory.user(b"inner", (17, 19))
    generator = memory.generator(memory.call(inner, UNMAPPED, memory.opline(inner, 1)))
    outer = memory.call(main, 0, memory.opline(main, 2))
    memory.run(memory.call(0, outer, this=generator, is_object=True))

    assert shown(walker, walker.walk()) == [(b"inner", 19), (b"", 7)]


def test_the_placeholder_of_a_finished_generator_is_none(memory, walker):
    memory.run(memory.call(0, 0, this=memory.generator(0), is_object=True))

    assert walker.walk() == Walked((None,), StackFlag(0))


@pytest.mark.parametrize(("depth", "flags"), [(6, StackFlag.TRUNCATED), (7, 0), (8, 0)])
def test_a_stack_deeper_than_the_limit_is_truncated(memory, depth, flags):
    function, call = memory.user(b"deep"), 0
    for _ in range(7):
        call = memory.call(function, call, memory.opline(function, 0))
    memory.run(call)
    walked = Walker(PID, LAYOUT, memory.current, depth).walk()

    assert (len(walked.frames), walked.flags) == (min(depth, 7), flags)


def test_a_circular_stack_is_truncated(memory, walker):
    call = memory.call(memory.user(b"loop"), 0)
    memory.write(call + 48, struct.pack("<Q", call))
    memory.run(call)

    with within(5):
        walked = walker.walk()
    assert (len(walked.frames), walked.flags) == (127, StackFlag.TRUNCATED)


@pytest.mark.parametrize("kind", [0, 3, 5, 255])
def test_a_function_of_an_unknown_type_ends_the_stack_as_corrupt(memory, walker, kind):
    main, find = memory.user(None, kind=kind), memory.user(b"find")
    memory.run(memory.call(find, memory.call(main, 0), memory.opline(find, 0)))
    walked = walker.walk()

    assert shown(walker, walked) == [(b"find", 3)]
    assert walked.flags == StackFlag.CORRUPT


def test_a_user_function_without_a_file_is_corrupt(memory, walker):
    memory.run(memory.call(memory.user(b"find", file=None), 0))

    assert walker.walk() == Walked((), StackFlag.CORRUPT)


ANYWHERE = (UNMAPPED, 1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)


@pytest.mark.parametrize("address", ANYWHERE)
def test_a_frame_at_an_unmapped_address_is_corrupt(memory, walker, address):
    main = memory.user(None)
    memory.run(memory.call(main, address, memory.opline(main, 0)))
    walked = walker.walk()

    assert shown(walker, walked) == [(b"", 3)]
    assert walked.flags == StackFlag.CORRUPT


@pytest.mark.parametrize("address", ANYWHERE)
def test_a_function_at_an_unmapped_address_is_corrupt(memory, walker, address):
    memory.run(memory.call(address, 0))

    assert walker.walk() == Walked((), StackFlag.CORRUPT)


@pytest.mark.parametrize("address", ANYWHERE)
def test_globals_at_an_unmapped_address_are_corrupt(address):
    assert Walker(PID, LAYOUT, address, 127).walk() == Walked((), StackFlag.CORRUPT)


@pytest.mark.parametrize("address", ANYWHERE)
def test_an_opline_outside_the_function_has_no_line(memory, walker, address):
    memory.run(memory.call(memory.user(b"find"), 0, address))

    assert shown(walker, walker.walk()) == [(b"find", 0)]


def test_the_opline_behind_the_last_has_no_line(memory, walker):
    find = memory.user(b"find", (3, 5, 7))
    memory.run(memory.call(find, 0, memory.opline(find, 3)))

    assert shown(walker, walker.walk()) == [(b"find", 0)]


@pytest.mark.parametrize(("size", "flag"), [(126, 0), (127, 0), (128, FunctionFlag.NAME_CUT)])
def test_a_long_name_keeps_its_beginning(memory, walker, size, flag):
    name = bytes(65 + number % 26 for number in range(size))
    found = only_function(memory, walker, memory.user(name))

    assert found == USER_FUNCTION._replace(name=name[:127], flags=FunctionFlag.CLASSLESS | flag)


def test_a_long_class_name_keeps_its_beginning(memory, walker):
    found = only_function(memory, walker, memory.user(b"find", scope=memory.scope(b"C" + b"x" * 211)))

    assert found == USER_FUNCTION._replace(class_name=b"C" + b"x" * 126, flags=FunctionFlag.CLASS_CUT)


def test_a_long_file_keeps_its_end(memory, walker):
    file = b"/srv/" + b"x" * 300 + b"/Repo.php"
    found = only_function(memory, walker, memory.user(b"find", file=file))

    assert found == USER_FUNCTION._replace(file=file[-255:], flags=FunctionFlag.CLASSLESS | FunctionFlag.FILE_CUT)


def test_a_nul_ends_a_name_and_does_not_count_as_a_cut(memory, walker):
    name = b"class@anonymous\0/srv/app/" + b"x" * 200
    found = only_function(memory, walker, memory.user(b"find", scope=memory.scope(name)))

    assert found == USER_FUNCTION._replace(class_name=b"class@anonymous", flags=FunctionFlag(0))


@pytest.mark.parametrize("before", [1, 8, 20, 24, 25, 29])
def test_a_string_is_read_across_the_border_of_a_page(memory, walker, before):
    name_at = memory.string(b"crossing", before_page_border=before)

    assert only_function(memory, walker, memory.user(None, name_at=name_at)) == USER_FUNCTION._replace(name=b"crossing")


def test_a_string_of_an_impossible_length_is_not_a_name(memory, walker):
    name_at = memory.string(b"find", length=(1 << 20) + 1)

    assert only_function(memory, walker, memory.user(None, name_at=name_at)) is None


@pytest.mark.parametrize("address", ANYWHERE)
def test_a_string_at_an_unmapped_address_is_not_a_name(memory, walker, address):
    assert only_function(memory, walker, memory.user(None, name_at=address)) is None


@pytest.mark.parametrize("address", ANYWHERE)
def test_a_class_at_an_unmapped_address_is_not_a_name(memory, walker, address):
    assert only_function(memory, walker, memory.user(b"find", scope=address)) is None


def test_each_walk_reads_the_memory_anew(memory, walker):
    first, second = memory.user(b"first"), memory.user(b"second")
    memory.run(memory.call(first, 0, memory.opline(first, 0)))
    walker.walk()
    memory.run(memory.call(second, 0, memory.opline(second, 1)))

    assert shown(walker, walker.walk()) == [(b"second", 5)]


@PROPERTY
@given(content=st.binary(min_size=56, max_size=56), own=st.lists(st.integers(0, 6), max_size=3))
def test_the_walk_of_a_frame_with_any_content_ends(memory, walker, content, own):
    call = memory.call(0, 0)
    words = list(struct.unpack("<7Q", content))
    for index in own:
        words[index] = call
    memory.write(call, struct.pack("<7Q", *words))
    memory.run(call)

    with within(5):
        walked = walker.walk()
        for frame in walked.frames:
            assert frame is None or walker.function(frame[0]) is None or frame[1] >= 0
    assert len(walked.frames) <= 127


# The sender


@pytest.fixture
def sent() -> list[bytes]:
    return []


@pytest.fixture
def sender(walker: Walker, sent: list[bytes]) -> StackSender:
    return StackSender(PID, walker, sent.append)


def mapped(nth: int = 7, number: int = 0, call: Call = Call.MMAP) -> MemoryCallMade:
    """Return a call that maps a page; each number has another address."""
    return MemoryCallMade(nth, call, BASE + number * 0x10_0000, 4096, 0, 0, False)


def kinds(sent: list[bytes]) -> list[int]:
    return [HEAD.unpack_from(record)[0] for record in sent]


def growths(sent: list[bytes], nth: int = 7) -> list[Growth]:
    book = GrowthDecoder()
    for record in sent:
        book.take(record)
    return book.growths(PID, nth)


@pytest.fixture
def run_find(memory: ZendMemory) -> Callable[..., None]:
    """Return a function that puts PHP at an opcode of find(), called by the main script."""
    main, find = memory.user(None, (1, 13)), memory.user(b"find", (83, 89), scope=memory.scope(b"Repo"))
    outer = memory.call(main, 0, memory.opline(main, 1))

    def run(opcode: int = 0) -> None:
        memory.run(memory.call(find, outer, memory.opline(find, opcode)))

    return run


def test_a_sent_stack_is_decoded_as_the_stack_in_memory(sender, sent, run_find):
    run_find(1)
    sender.memory_call(mapped())

    stack = (Frame("user", "<main>", FILE, 13), Frame("user", "Repo::find", FILE, 89))
    assert growths(sent) == [Growth(PID, 7, "mapped", stack, 4096, 1)]


def test_functions_come_before_their_stack_and_a_stack_before_its_call(sender, sent, run_find):
    run_find()
    sender.memory_call(mapped())

    assert kinds(sent) == [
        StackEventKind.FUNCTION, StackEventKind.FUNCTION, StackEventKind.STACK, StackEventKind.MEMORY_CALL
    ]  # fmt: skip


def test_a_stack_is_sent_once_per_request(sender, sent, run_find):
    run_find()
    sender.memory_call(mapped())
    sent_before = len(sent)
    sender.memory_call(mapped(number=1))

    assert kinds(sent[sent_before:]) == [StackEventKind.MEMORY_CALL]
    assert [(growth.bytes, growth.samples) for growth in growths(sent)] == [(8192, 2)]


def test_a_function_is_sent_once_per_request(sender, sent, run_find):
    run_find(0)
    sender.memory_call(mapped())
    sent_before = len(sent)
    run_find(1)
    sender.memory_call(mapped(number=1))

    assert kinds(sent[sent_before:]) == [StackEventKind.STACK, StackEventKind.MEMORY_CALL]
    assert [growth.stack[-1].line for growth in growths(sent)] == [83, 89]


def test_the_next_request_sends_everything_again(sender, sent, run_find):
    run_find()
    sender.memory_call(mapped())
    sender.memory_call(mapped(nth=8, number=1))

    assert kinds(sent[:4]) == kinds(sent[4:])
    assert [growth.stack[-1].name for growth in growths(sent, 8)] == ["Repo::find"]


def test_munmap_is_sent_without_a_stack(sender, sent, run_find):
    run_find()
    sender.memory_call(mapped(call=Call.MUNMAP))

    assert kinds(sent) == [StackEventKind.MEMORY_CALL]
    assert MEMORY_CALL.unpack(sent[0])[4] == HASH_NO_PHP


def test_a_call_while_no_php_runs_has_no_php(sender, sent):
    sender.memory_call(mapped())

    assert kinds(sent) == [StackEventKind.MEMORY_CALL]
    assert [growth.stack for growth in growths(sent)] == [(NO_PHP,)]


def test_a_stack_with_a_corrupt_function_name_is_lost(memory, sender, sent):
    memory.run(memory.call(memory.user(None, name_at=UNMAPPED), 0))
    sender.memory_call(mapped())

    assert [growth.stack for growth in growths(sent)] == [(STACK_LOST,)]


def test_a_stack_with_a_corrupt_frame_is_marked(memory, sender, sent):
    find = memory.user(b"find")
    memory.run(memory.call(find, UNMAPPED, memory.opline(find, 0)))
    sender.memory_call(mapped())

    assert [growth.stack for growth in growths(sent)] == [(UNREADABLE, Frame("user", "find", FILE, 3))]


def test_a_stack_that_is_truncated_is_marked(memory, sent, run_find):
    run_find()
    sender = StackSender(PID, Walker(PID, LAYOUT, memory.current, 1), sent.append)
    sender.memory_call(mapped())

    assert [growth.stack for growth in growths(sent)] == [(TRUNCATED, Frame("user", "Repo::find", FILE, 83))]


def test_a_dummy_frame_of_the_engine_is_not_decoded(memory, sender, sent):
    main = memory.user(None)
    memory.run(memory.call(0, memory.call(main, 0, memory.opline(main, 0))))
    sender.memory_call(mapped())

    assert [growth.stack for growth in growths(sent)] == [(Frame("user", "<main>", FILE, 3),)]


def test_cut_names_are_decoded_with_an_ellipsis(memory, sender, sent):
    find = memory.user(b"f" * 131, file=b"/" * 257)
    memory.run(memory.call(find, 0, memory.opline(find, 0)))
    sender.memory_call(mapped())

    assert [growth.stack for growth in growths(sent)] == [(Frame("user", "f" * 127 + "…", "…" + "/" * 255, 3),)]


def test_a_call_keeps_its_values(sender, sent):
    sender.memory_call(MemoryCallMade(7, Call.MREMAP, BASE, 8192, BASE + 65_536, 12_288, True))

    assert MEMORY_CALL.unpack(sent[0]) == (
        StackEventKind.MEMORY_CALL, PID, 7, Call.MREMAP, HASH_NO_PHP, BASE, 8192, BASE + 65_536, 12_288, 1, 0
    )  # fmt: skip


def test_every_record_has_the_size_of_its_struct(sender, sent, run_find):
    run_find()
    sender.memory_call(mapped())

    assert [len(record) for record in sent] == [FUNCTION.size, FUNCTION.size, STACK.size + 2 * 16, MEMORY_CALL.size]
