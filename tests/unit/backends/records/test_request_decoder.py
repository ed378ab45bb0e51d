"""From the records of the ring to requests: the fields that each flag makes None, and untrusted content."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from records import MEASURED, ORIGIN, record
from samples import PROPERTY

from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import REQUEST, SCRIPT_MAX, URI_MAX, Flag
from tracer.facts import WORKER_FIELDS, Ending, Place, Request

CLOCK_OFFSET_NS = 1_700_000_000_000_000_003
DECODER = RequestDecoder("web1", CLOCK_OFFSET_NS, keep_query=False, calls=True)
KEEPS_QUERY = RequestDecoder("web1", CLOCK_OFFSET_NS, keep_query=True, calls=True)
# What is no field of a Request by that name.
CONVERTED = {"kind", "flags", "started_ns", "ended_ns", "exit_code", "script_bytes", "uri_bytes",
             "script_stored", "uri_stored", "method"}  # fmt: skip
UNKNOWN_BITS = 0xFFFF_8000


def absent(found: Request) -> set[str]:
    """The fields that are None, `notes` aside."""
    return {name for name in Request._fields if getattr(found, name) is None} - {"notes"}


def test_a_request_that_was_seen_whole_has_every_field():
    found = DECODER.request(record(), "www", ORIGIN)

    assert absent(found) == set()
    assert {name: getattr(found, name) for name in MEASURED if name not in CONVERTED} == {
        name: value for name, value in MEASURED.items() if name not in CONVERTED
    }


def test_a_request_that_was_seen_whole_has_no_notes_and_is_finished():
    found = DECODER.request(record(), "www")

    assert (found.notes, found.ending, found.complete) == (None, "finished", True)


def test_host_and_pool_are_those_that_the_caller_names():
    found = DECODER.request(record(), "shop")

    assert (found.host, found.pool) == ("web1", "shop")


def test_the_worker_is_the_one_that_the_caller_names():
    found = DECODER.request(record(), "www", ORIGIN)

    assert (found.start_ticks, found.master_pid) == (7907, 4231)
    assert found.worker == ("web1", *ORIGIN[2:], 4231, "www", 4241, 7907)


def test_times_become_unix_time_and_a_duration():
    found = DECODER.request(record(), None)

    assert (found.started_ns, found.duration_ns) == (CLOCK_OFFSET_NS + 1_000_003, 7_000_006)


def test_the_strings_are_divided_where_the_record_says():
    found = DECODER.request(record(script=b"/a/b.php", uri=b"/c"), None)

    assert (found.script, found.uri) == ("/a/b.php", "/c")


def test_figures_of_a_broken_workers_heap_fit_a_recording():
    made_up = record(zend_peak=-1, zend_real_before=-1, zend_used_end=-(1 << 63), native_alloc_bytes=(1 << 63) - 1,
                     native_mapped_bytes=(1 << 63) - 1)  # fmt: skip

    found = DECODER.request(made_up, None)

    assert all(abs(value) <= 1 << 63 for value in found if isinstance(value, int))


def test_a_status_of_zero_was_never_set():
    assert DECODER.request(record(status=0), None).status is None


@pytest.mark.parametrize(
    ("flag", "none", "notes"),
    [
        (Flag.ZEND_HEAP_UNKNOWN, {"zend_used_end", "zend_peak", "zend_real_before", "zend_real_peak", "zend_real_end",
                        "zend_real_after", "native_mapped_bytes", "native_kept", "native_released"},
         "zend_heap_unknown"),
        (Flag.NATIVE_NOT_COUNTED, {"native_alloc_bytes", "native_alloc_calls", "native_free_bytes", "native_free_calls",
                                   "native_freed_earlier", "native_between_bytes", "native_kept",
                                   "native_released"}, "native_not_counted"),
        (Flag.NATIVE_BETWEEN_NOT_COUNTED, {"native_between_bytes"}, "native_between_not_counted"),
        (Flag.TEARDOWN_NOT_SEEN, {"anon_end", "zend_peak", "zend_real_peak", "zend_real_end", "status"},
         "teardown_not_seen"),
        (Flag.SCRIPT_END_NOT_SEEN, {"zend_used_end", "memory_limit"}, "script_end_not_seen"),
        (Flag.PHP_LAYOUT_UNKNOWN, {"status", "memory_limit"}, "php_layout_unknown"),
        (Flag.URI_IS_SCRIPT_NAME, set(), "uri_is_script_name"),
        (Flag.URI_UNKNOWN, {"uri"}, "uri_unknown"),
        (Flag.SCRIPT_IS_PATH_TRANSLATED, set(), "script_is_path_translated"),
        (Flag.NO_SCRIPT, {"script"}, "no_script"),
        (Flag.METHOD_FROM_SAPI, set(), "method_from_sapi"),
        (Flag.METHOD_UNKNOWN, {"method"}, "method_unknown"),
        (Flag.ENDING_UNKNOWN, set(), "ending_unknown"),
        (Flag.EXITED, set(), None),
        (Flag.FATAL, set(), None),
        (Flag.USAGE_NOT_READ, {"cpu_ns", "minor_faults", "major_faults"}, None),
        (Flag.CALLS_NOT_SEEN, {"map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_bytes", "brk_calls"}, None),
    ],
)  # fmt: skip
def test_a_flag_makes_unmeasured_fields_none_and_the_notes_state_it(flag, none, notes):
    found = DECODER.request(record(flags=flag), "www", ORIGIN)

    assert (absent(found), found.notes) == (none, notes)


def test_a_request_whose_start_was_not_seen_has_only_its_worker_and_its_memory_at_the_end():
    found = DECODER.request(record(flags=Flag.START_NOT_SEEN | Flag.URI_UNKNOWN), "www", ORIGIN)

    at_the_end = {"anon_after", "file_after", "shmem_after", "vm_after"}
    of_worker = set(WORKER_FIELDS) | {"nth", "ending", "notes"}
    assert absent(found) == set(Request._fields) - of_worker - at_the_end
    assert (found.pid, found.pool, found.nth, found.place) == (4241, "www", 7, Place._make(ORIGIN[2:]))
    assert (found.ending, found.notes) == ("cut_off", "start_not_seen")


def test_a_request_cut_by_its_workers_death_keeps_the_figures_measured_before():
    found = DECODER.request(record(flags=Flag.END_NOT_SEEN, exit_code=9), "www")

    assert {"anon_after", "file_after", "shmem_after", "zend_real_after", "vm_after", "status"} <= absent(found)
    assert (found.anon_before, found.map_bytes, found.uri) == (10_000_019, 2_097_169, "/shop")


@pytest.mark.parametrize(
    ("flags", "exit_code", "ending", "notes"),
    [
        (0, 0, "finished", None),
        (Flag.EXITED, 0, "exited", None),
        (Flag.FATAL, 0, "fatal", None),
        (Flag.FATAL | Flag.EXITED, 0, "fatal", None),
        (Flag.ENDING_UNKNOWN, 0, "unknown", "ending_unknown"),
        (Flag.PHP_LAYOUT_UNKNOWN, 0, "unknown", "php_layout_unknown"),
        (Flag.PHP_LAYOUT_UNKNOWN | Flag.EXITED, 0, "exited", "php_layout_unknown"),
        (Flag.END_NOT_SEEN, 9, "killed:KILL", "end_not_seen"),
        (Flag.END_NOT_SEEN | Flag.OOM_VICTIM, 9, "killed:KILL", "end_not_seen,oom"),
        (Flag.END_NOT_SEEN | Flag.OOM_VICTIM, 11, "killed:SEGV", "end_not_seen"),
        (Flag.END_NOT_SEEN, 11 | 0x80, "killed:SEGV", "end_not_seen"),  # 0x80: it dumped core
        (Flag.END_NOT_SEEN, 63, "killed:63", "end_not_seen"),
        (Flag.END_NOT_SEEN | Flag.EXITED, 15, "killed:TERM", "end_not_seen"),
        (Flag.END_NOT_SEEN, 3 << 8, "cut_off", "end_not_seen,worker_exited"),
        (Flag.END_NOT_SEEN | Flag.DETACHED, 0, "cut_off", "end_not_seen"),
    ],
)
def test_the_ending_follows_from_flags_and_exit_code(flags, exit_code, ending, notes):
    found = DECODER.request(record(flags=flags, exit_code=exit_code), None)

    assert (found.ending, found.notes) == (ending, notes)


def test_calls_that_are_not_counted_are_not_measured():
    uncounted = RequestDecoder("web1", 0, keep_query=False, calls=False)

    found = uncounted.request(record(), "www", ORIGIN)

    assert absent(found) == {"map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_calls"}
    assert found.notes == "calls_not_hooked"


def test_address_space_that_the_calls_do_not_explain_is_noted():
    found = DECODER.request(record(vm_after=250_000_013), None)

    assert found.notes == "mapped_elsewhere"


def test_the_query_string_is_stripped():
    assert DECODER.request(record(uri=b"/login?password=x?y"), None).uri == "/login"


def test_the_query_string_is_kept_if_asked_for():
    assert KEEPS_QUERY.request(record(uri=b"/login?a=b?c"), None).uri == "/login?a=b?c"


def test_a_uri_longer_than_is_kept_is_noted_as_cut():
    found = DECODER.request(record(uri=b"/" + b"x" * 12_000), None)

    assert (len(found.uri or ""), found.notes) == (2048, "uri_cut")


def test_a_uri_cut_within_its_query_string_is_whole_once_that_is_stripped():
    found = DECODER.request(record(uri=b"/shop?" + b"x" * 12_000), None)

    assert (found.uri, found.notes) == ("/shop", None)


def test_a_uri_cut_within_its_query_string_is_cut_if_that_is_kept():
    assert KEEPS_QUERY.request(record(uri=b"/shop?" + b"x" * 12_000), None).notes == "uri_cut"


def test_a_script_longer_than_is_kept_is_noted_as_cut():
    found = DECODER.request(record(script=b"/" + b"s" * 2_000), None)

    assert (len(found.script or ""), found.uri, found.notes) == (1024, "/shop", "script_cut")


def test_bytes_that_are_not_utf8_are_recoverable():
    sent = b"/\xff\xc3\x28\xed\xa0\x80"

    found = DECODER.request(record(script=sent, uri=sent), None)

    assert (found.script or "").encode("utf-8", "surrogateescape") == sent
    assert (found.uri or "").encode("utf-8", "surrogateescape") == sent


def test_a_nul_in_a_uri_is_kept():
    assert DECODER.request(record(uri=b"/a\0b"), None).uri == "/a\0b"


@pytest.mark.parametrize(
    ("sent", "shown"), [(b"GET", "GET"), (b"PROPFIND", "PROPFIND"), (b"GET\0left over", "GET"), (b"M" * 16, "M" * 16)]
)
def test_a_method_ends_at_its_nul(sent, shown):
    assert DECODER.request(record(method=sent), None).method == shown


@PROPERTY
@given(st.binary(min_size=1, max_size=300), st.integers(0, SCRIPT_MAX + URI_MAX), st.booleans(), st.booleans())
@example(b"\xff", 0, False, True)
def test_a_record_of_any_bytes_is_decoded(content, strings_bytes, keep_query, calls):
    size = REQUEST.size + strings_bytes
    any_bytes = (content * (size // len(content) + 1))[:size]

    found = RequestDecoder("h", 1, keep_query=keep_query, calls=calls).request(any_bytes, None)

    assert found.ending.split(":")[0] in {ending.value for ending in Ending}


@PROPERTY
@given(st.integers(0, 0xFFFF), st.integers(-(1 << 31), (1 << 31) - 1), st.binary(max_size=40), st.binary(max_size=40))
def test_flags_in_any_combination_are_decoded(flags, exit_code, script, uri):
    found = DECODER.request(record(script, uri, flags=flags | UNKNOWN_BITS, exit_code=exit_code), None)

    assert (found.pid, found.nth) == (4241, 7)
    assert found.complete == (not flags & (Flag.START_NOT_SEEN | Flag.END_NOT_SEEN))
