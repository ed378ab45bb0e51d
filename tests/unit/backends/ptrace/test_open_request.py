"""The record of a request seen from outside, decoded by the decoder of every record."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import ORIGIN
from samples import PROPERTY

from tracer.backends.ptrace import open_request
from tracer.backends.ptrace.open_request import ABSENT, CallCounts, OpenRequest, end_alone
from tracer.backends.ptrace.proc_files import Memory, WorkerFiles
from tracer.backends.records.request_decoder import RequestDecoder
from tracer.backends.records.request_structs import (
    REPLACED,
    REQUEST,
    REQUEST_FIELDS,
    SCRIPT_MAX,
    URI_MAX,
    EventKind,
)  # fmt: skip
from tracer.facts import WORKER_FIELDS, Place, Request
from tracer.targets.php_memory import HeapFigures

OFFSET_NS = 1_700_000_000_000_000_003
HEAP = HeapFigures(size=401_987, peak=2_921_293, real_size=2_359_309, real_peak=4_194_319)
# In every request that is traced by system calls: they do not show the end of the script, nor allocations.
UNMEASURED = {"zend_used_end", "memory_limit", "native_alloc_bytes", "native_alloc_calls", "native_free_bytes",
              "native_free_calls", "native_freed_earlier", "native_mapped_bytes", "native_between_bytes", "native_kept",
              "native_released"}  # fmt: skip
CALLS = {"map_bytes", "map_calls", "unmap_bytes", "unmap_calls", "brk_bytes", "brk_calls"}
USAGE = {"cpu_ns", "minor_faults", "major_faults"}
AFTER_END = {"anon_after", "file_after", "shmem_after", "zend_real_after", "vm_after", "brk_bytes", "status"}

RUNNING = OpenRequest(
    pid=4241,
    nth=7,
    started_ns=1_000_003,
    uri=b"/shop?id=13",
    uri_bytes=11,
    script=b"/srv/index.php",
    script_bytes=14,
    method=b"POST",
    before=Memory(10_000_019, 2_000_003, 300_007, 250_000_013),
    faults_before=(101, 2),
    cpu_before_ns=5_003,
    zend_real_before=2_097_169,
    anon_peak=10_000_019,
    status=503,
    fatal=False,
    calls=CallCounts(
        map_bytes=2_097_169, map_calls=5, unmap_bytes=1_572_899, unmap_calls=2, brk_bytes=-8_191, brk_calls=11
    ),
)
AFTER = Memory(10_524_307, 2_000_029, 300_017, 250_000_013 + 2_097_169 - 1_572_899 - 8_191)


def running(**changed: Any) -> OpenRequest:
    """A copy of RUNNING with these fields changed; the request still runs."""
    return dataclasses.replace(RUNNING, **changed)


def finished(**changed: Any) -> OpenRequest:
    """A copy of RUNNING with these fields changed, after its teardown and its end."""
    made = running(**changed)
    made.at_teardown(HEAP, 10_400_009)
    made.sample(30_000_001)
    return dataclasses.replace(
        made, ended_ns=8_000_009, after=AFTER, faults=(131, 3), cpu_ns=5_000_011, zend_real_after=2_097_211
    )


def decoded(record: bytes, *, keep_query: bool = True, calls: bool = True) -> Request:
    return RequestDecoder("web1", OFFSET_NS, keep_query=keep_query, calls=calls).request(record, "www", ORIGIN)


def absent(found: Request) -> set[str]:
    return {name for name, value in found._asdict().items() if value is None}


@pytest.fixture
def files() -> Iterator[WorkerFiles]:
    """The /proc files of this process."""
    opened = WorkerFiles(os.getpid())
    yield opened
    opened.close()


def test_a_finished_request_has_every_field_that_ptrace_can_measure():
    assert decoded(finished().record()) == Request(
        host="web1", pid=4241, pool="www", nth=7, started_ns=1_000_003 + OFFSET_NS, duration_ns=7_000_006,
        cpu_ns=5_000_011, method="POST", uri="/shop?id=13", script="/srv/index.php", status=503, ending="finished",
        anon_before=10_000_019, anon_end=10_400_009, anon_after=10_524_307, file_before=2_000_003,
        file_after=2_000_029, shmem_before=300_007, shmem_after=300_017, anon_peak=30_000_001, zend_used_end=None,
        zend_peak=2_921_293, zend_real_before=2_097_169, zend_real_peak=4_194_319, zend_real_end=2_359_309,
        zend_real_after=2_097_211, memory_limit=None, vm_before=250_000_013, vm_after=250_516_092,
        map_bytes=2_097_169, map_calls=5, unmap_bytes=1_572_899, unmap_calls=2, brk_bytes=-8_191, brk_calls=11,
        native_alloc_bytes=None, native_alloc_calls=None, native_free_bytes=None, native_free_calls=None,
        native_freed_earlier=None, native_mapped_bytes=None, native_between_bytes=None, native_kept=None,
        native_released=None,
        minor_faults=131, major_faults=3,
        notes="native_not_counted,script_end_not_seen", start_ticks=ORIGIN[0], master_pid=ORIGIN[1],
        **Place._make(ORIGIN[2:])._asdict(),
    )  # fmt: skip


def test_the_end_of_a_request_reads_the_worker(files):
    made = running(faults_before=(0, 0), cpu_before_ns=0)
    made.end(8_000_009, files, HEAP)
    found = decoded(made.record())

    assert (found.duration_ns, found.zend_real_after) == (7_000_006, 2_359_309)
    assert (found.anon_after, found.vm_after, found.cpu_ns) == (made.after.anon, made.after.vm, made.cpu_ns)
    assert min(found.anon_after, found.vm_after, found.cpu_ns, found.minor_faults) > 0


def test_faults_and_cpu_time_count_from_the_start(files):
    minor, major = files.faults()
    cpu_ns = files.cpu_ns()
    made = running(faults_before=(minor - 1_009, major), cpu_before_ns=cpu_ns - 3_000_017)
    made.end(8_000_009, files, None)

    assert 1_009 <= decoded(made.record()).minor_faults < 2_000
    assert 3_000_017 <= decoded(made.record()).cpu_ns < 3_000_000_000


def test_the_peak_is_the_highest_sample():
    made = finished()
    made.sample(40_000_003)
    made.sample(20_000_003)

    assert decoded(made.record()).anon_peak == 40_000_003


def test_memory_at_the_end_is_a_sample_too(files):
    made = running(anon_peak=0)
    made.end(8_000_009, files, None)

    assert decoded(made.record()).anon_peak == made.after.anon


def test_several_teardown_samples_keep_the_highest_memory_and_the_last_heap():
    made = finished()
    made.at_teardown(HeapFigures(13, 3_000_017, 2_100_001, 4_100_003), 10_300_003)
    found = decoded(made.record())

    assert (found.anon_end, found.zend_real_end) == (10_400_009, 2_100_001)
    assert (found.zend_peak, found.zend_real_peak) == (3_000_017, 4_194_319)


def test_a_request_of_a_killed_worker_has_no_end():
    made = running()
    made.at_teardown(HEAP, 10_400_009)
    made.cut_off(3_000_017, 11)
    found = decoded(made.record())

    assert (found.ending, found.notes, found.duration_ns) == ("killed:SEGV", "end_not_seen", 2_000_014)
    assert absent(found) == UNMEASURED | AFTER_END | USAGE


def test_a_signal_that_dumped_a_core_is_named():
    made = running()
    made.cut_off(3_000_017, 6 | 0x80)

    assert decoded(made.record()).ending == "killed:ABRT"


def test_a_request_whose_worker_exited_is_cut_off():
    made = running()
    made.cut_off(3_000_017, 0)
    found = decoded(made.record())

    assert (found.ending, found.notes) == ("cut_off", "end_not_seen,worker_exited")
    assert {"anon_end", "zend_peak", "zend_real_end"} <= absent(found)


def test_a_request_that_outlives_the_tracing_is_cut_off_without_blaming_its_worker():
    made = running()
    made.cut_off(3_000_017, 0, detached=True)
    found = decoded(made.record())

    assert (found.ending, found.notes) == ("cut_off", "end_not_seen")
    assert {"cpu_ns", "minor_faults", "major_faults", "anon_after"} <= absent(found)
    assert (found.anon_before, found.map_bytes, found.uri) == (10_000_019, 2_097_169, "/shop?id=13")


def test_a_404_has_no_script():
    found = decoded(finished(script=None, script_bytes=0, status=404).record())

    assert (found.status, found.notes) == (404, "no_script,native_not_counted,script_end_not_seen")
    assert absent(found) == UNMEASURED | {"script"}


def test_a_request_with_an_unknown_heap_has_no_heap_fields():
    made = finished(zend_real_before=None, heap_end=None)
    found = decoded(made.record())

    assert found.notes == "zend_heap_unknown,native_not_counted,script_end_not_seen"
    assert absent(found) == UNMEASURED | {
        "zend_peak", "zend_real_before", "zend_real_peak", "zend_real_end", "zend_real_after",
    }  # fmt: skip


def test_a_request_whose_teardown_was_not_seen_has_no_zend_peak():
    made = dataclasses.replace(finished(), anon_end=None)
    found = decoded(made.record())

    assert found.notes == "native_not_counted,script_end_not_seen,teardown_not_seen"
    assert absent(found) == UNMEASURED | {"anon_end", "zend_peak", "zend_real_peak", "zend_real_end", "status"}


def test_a_request_of_an_unknown_layout_has_no_status():
    found = decoded(finished(layout_known=False).record())

    assert found.notes == "php_layout_unknown,native_not_counted,script_end_not_seen"
    assert absent(found) == UNMEASURED | {"status"}


def test_a_status_that_was_never_set_is_none():
    assert decoded(finished(status=None).record()).status is None


def test_the_end_of_the_script_gives_its_memory_and_its_limit():
    made = finished()
    made.at_script_end(HEAP, 134_217_728)
    found = decoded(made.record())

    assert (found.zend_used_end, found.memory_limit) == (401_987, 134_217_728)
    assert found.notes == "native_not_counted"


def test_a_request_that_may_have_failed_says_so():
    found = decoded(finished(fatal=None).record())

    assert (found.ending, found.notes) == ("unknown", "ending_unknown,native_not_counted,script_end_not_seen")


def test_a_fatal_error_is_the_ending():
    assert decoded(finished(fatal=True).record()).ending == "fatal"


def test_a_long_uri_is_cut_and_that_is_noted():
    uri = b"/" + b"x" * 3_000
    found = decoded(finished(uri=uri, uri_bytes=3_001).record())

    assert found.uri == "/" + "x" * (URI_MAX - 1)
    assert found.notes == "native_not_counted,script_end_not_seen,uri_cut"
    assert found.script == "/srv/index.php"


def test_a_uri_that_was_read_in_part_is_noted_as_cut():
    found = decoded(finished(uri=b"/shop", uri_bytes=4_099).record())

    assert (found.uri, found.notes) == ("/shop", "native_not_counted,script_end_not_seen,uri_cut")


def test_a_uri_that_just_fits_is_not_cut():
    uri = b"/" + b"x" * (URI_MAX - 1)
    found = decoded(finished(uri=uri, uri_bytes=URI_MAX).record())

    assert (len(found.uri), found.notes) == (2048, "native_not_counted,script_end_not_seen")


def test_a_long_script_is_cut_and_that_is_noted():
    found = decoded(finished(script=b"s" * 1_031, script_bytes=1_031).record())

    assert (found.script, found.notes) == ("s" * SCRIPT_MAX, "native_not_counted,script_end_not_seen,script_cut")
    assert found.uri == "/shop?id=13"


def test_a_long_method_is_cut():
    assert decoded(finished(method=b"M" * 31).record()).method == "M" * 15


def test_the_query_string_is_stripped():
    assert decoded(finished().record(), keep_query=False).uri == "/shop"


@pytest.mark.parametrize(
    ("name", "note"), [("uri", "uri_unknown"), ("script", "no_script"), ("method", "method_unknown")]
)
def test_a_parameter_that_was_not_sent_is_none(name, note):
    found = decoded(
        finished(**{name: None}, uri_bytes=11 * (name != "uri"), script_bytes=14 * (name != "script")).record()
    )

    assert getattr(found, name) is None
    assert found.notes == f"{note},native_not_counted,script_end_not_seen"


def test_calls_that_were_not_seen_are_absent():
    found = decoded(finished(calls=None).record(), calls=False)

    assert found.notes == "native_not_counted,script_end_not_seen,calls_not_hooked"
    assert absent(found) == UNMEASURED | CALLS


def test_a_heap_that_could_not_be_read_at_the_teardown_is_absent():
    made = running()
    made.at_teardown(None, 10_400_009)
    made = dataclasses.replace(
        made, ended_ns=8_000_009, after=AFTER, faults=(131, 3), cpu_ns=5_000_011, zend_real_after=2_097_211
    )

    assert {"zend_peak", "zend_real_peak", "zend_real_end"} <= absent(decoded(made.record()))


def test_a_heap_that_could_not_be_read_at_the_end_is_absent(files):
    made = running()
    made.at_teardown(HEAP, 10_400_009)
    made.end(8_000_009, files, None)

    assert decoded(made.record()).zend_real_after is None


def test_a_worker_that_became_another_program_was_not_killed():
    made = running()
    made.cut_off(3_000_017, REPLACED)

    assert decoded(made.record()).ending == "cut_off"


# Every field of the struct is filled, or absent by a flag.

BOOLEANS = st.booleans()


@PROPERTY
@given(started=BOOLEANS, teardown=BOOLEANS, heap=BOOLEANS, ended=BOOLEANS, heap_after=BOOLEANS, calls=BOOLEANS)
def test_no_field_that_was_not_measured_is_0(started, teardown, heap, ended, heap_after, calls):
    made = running(zend_real_before=2_097_169 if started else None, calls=RUNNING.calls if calls else None)
    if teardown:
        made.at_teardown(HEAP if heap else None, 10_400_009)
    if ended:
        made = dataclasses.replace(
            made, ended_ns=8_000_009, after=AFTER, faults=(131, 3), cpu_ns=5_000_011,
            zend_real_after=2_097_211 if heap_after else None,
        )  # fmt: skip
    else:
        made.cut_off(3_000_017, 9)

    assert 0 not in decoded(made.record())  # no value above is 0


@pytest.mark.parametrize("make", [
    lambda: finished().record(),
    lambda: running().record(),
    lambda: finished(calls=None).record(),
    lambda: end_alone(4241, 1, 8_000_009, AFTER),
], ids=["finished", "running", "breakpoints", "end alone"])  # fmt: skip
def test_a_field_that_is_neither_filled_nor_absent_is_named(make, monkeypatch):
    monkeypatch.setattr(open_request, "REQUEST_FIELDS", (*REQUEST_FIELDS, ("forgotten_bytes", "q"), ("later", "q")))

    with pytest.raises(ValueError, match="^field forgotten_bytes of struct request is neither filled nor"):
        make()


def test_a_field_that_the_struct_does_not_have_is_named(monkeypatch):
    without = tuple(field for field in REQUEST_FIELDS if field[0] != "brk_calls")
    monkeypatch.setattr(open_request, "REQUEST_FIELDS", without)

    with pytest.raises(ValueError, match="^struct request has no field brk_calls$"):
        finished().record()


@pytest.mark.parametrize("flag", ABSENT, ids=lambda flag: flag.name)
def test_the_decoder_leaves_out_what_a_flag_declares_absent(flag):
    values = {name: b"PUT" if form.endswith("s") else 7 for name, form in REQUEST_FIELDS}
    values |= {"kind": EventKind.REQUEST, "flags": flag, "script_stored": 0, "uri_stored": 0, "exit_code": 0}

    assert set(ABSENT[flag]) <= absent(decoded(REQUEST.pack(*values.values())))


def test_calls_of_more_than_64_bits_saturate():
    hostile = CallCounts(map_bytes=1 << 70, map_calls=5, unmap_bytes=1 << 64, unmap_calls=2, brk_bytes=-(1 << 66))

    found = decoded(finished(calls=hostile).record())

    most = (1 << 63) - 1
    assert (found.map_bytes, found.unmap_bytes, found.brk_bytes) == (most, most, -most - 1)


def test_a_record_can_be_made_twice():
    made = finished()

    assert made.record() == made.record()


def test_an_end_without_a_start_only_names_the_worker():
    found = decoded(end_alone(4241, 1, 8_000_009, AFTER))

    assert (found.host, found.pid, found.pool, found.nth) == ("web1", 4241, "www", 1)
    assert (found.ending, found.notes) == ("cut_off", "start_not_seen")
    known = {"anon_after", "file_after", "shmem_after", "vm_after"}
    assert absent(found) == set(Request._fields) - set(WORKER_FIELDS) - {"nth", "ending", "notes"} - known
    assert (found.anon_after, found.file_after, found.shmem_after, found.vm_after) == AFTER
