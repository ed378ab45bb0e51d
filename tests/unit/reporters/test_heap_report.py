"""The memory of a process, as text and as JSON."""

from __future__ import annotations

import dataclasses
import io
import json

from heap_looks import LOOK, MALLOC

from tracer.analysis.heap import HeapLook, figures, size_classes
from tracer.reporters.heap import document, render, render_json

HOSTILE = "evil\x1b]0;owned\x07\x1b[2J\u202e\n \udcff"


def text(look: HeapLook, before: HeapLook | None = None, *, hidden: int = 0) -> str:
    out = io.StringIO()
    elapsed_s = None if before is None else 10.04
    render(look, figures(look, before), size_classes(look, before), out, hidden=hidden, elapsed_s=elapsed_s)
    return out.getvalue()


def test_one_look_has_no_changes():
    assert text(LOOK, hidden=3) == (
        """\
process 4241 (php-fpm: pool www)
  anonymous memory              19.1 MiB  RssAnon
    Zend, resident               2.9 MiB  PHP's own heap
      in cached chunks           1.4 MiB  kept by Zend for later requests
    native                      16.2 MiB  all that is not Zend's
      malloc's heap, resident    8.6 MiB
      mapped apart by malloc     684 KiB  blocks of 128 KiB and more
      unexplained                7.0 MiB  data of libraries and PHP, stack, JIT code, other mappings
  malloc: in use                 7.6 MiB
  malloc: free but kept          977 KiB  between chunks in use
    in its caches               19.6 KiB  fastbins and the thread cache
  malloc: top                   97.7 KiB  free, at the end of the heap
  Zend: live chunks              2.0 MiB  address space
  Zend: cached chunks            4.0 MiB  address space

  chunk bytes      in use     memory
        1,040       1,009    1.0 MiB
           48       2,003   93.9 KiB
           32       3,001   93.8 KiB
  … and 3 more: -n 0 shows all
"""
    )


def test_two_looks_show_growth_to_the_byte():
    sizes = {32: 3001 + 1401, 48: 2003, 1040: 1009 + 1727}
    later = dataclasses.replace(
        LOOK, anon=LOOK.anon + 4096, malloc=dataclasses.replace(MALLOC, in_use=MALLOC.in_use + 1_840_912, sizes=sizes)
    )

    lines = text(later, LOOK).splitlines()

    assert lines[1].split() == ["change", "in", "10.04", "s"]
    assert lines[2].split()[-2:] == ["+4,096", "RssAnon"]
    assert [line.split()[-1] for line in lines if "malloc: in use" in line] == ["+1,840,912"]
    assert lines[-3].split() == ["chunk", "bytes", "in", "use", "memory", "change", "bytes"]
    assert lines[-2].split() == ["1,040", "2,736", "2.7", "MiB", "+1,727", "+1,796,080"]
    assert lines[-1].split() == ["32", "4,402", "138", "KiB", "+1,401", "+44,832"]


def test_an_unknown_figure_is_a_dash_and_has_its_reason():
    found = text(dataclasses.replace(LOOK, malloc=None, lacking={"malloc": "its malloc is jemalloc, not glibc's"}))

    assert [line.split()[-1] for line in found.splitlines() if "malloc: in use" in line] == ["-"]
    assert found.endswith("  note: malloc: unknown, since its malloc is jemalloc, not glibc's\n")
    assert "chunk bytes" not in found


def test_a_title_that_another_user_chose_is_escaped_and_short():
    found = text(dataclasses.replace(LOOK, title=HOSTILE + "x" * 500, lacking={"malloc": HOSTILE}, malloc=None))

    assert not {char for char in found if not char.isprintable()} - {"\n"}
    assert len(found.splitlines()[0]) < 100
    assert "\u202e" not in found


def test_the_json_document_has_every_figure_in_bytes():
    out = io.StringIO()
    found = document(LOOK, figures(LOOK), size_classes(LOOK)[:1], elapsed_s=None)
    render_json([found], [(7, "it has ended")], out)

    whole = json.loads(out.getvalue())
    assert (whole["schema"], whole["failed"]) == (1, [{"pid": 7, "why": "it has ended"}])
    (process,) = whole["processes"]
    assert process == {
        "pid": 4241,
        "start_ticks": 777_013,
        "pool": "www",
        "title": "php-fpm: pool www",
        "anon_bytes": 20_000_003,
        "zend_resident_bytes": 3_000_017,
        "zend_resident_cached_bytes": 1_500_019,
        "zend_live_bytes": 2 << 20,
        "zend_cached_bytes": 4 << 20,
        "native_bytes": 16_999_986,
        "malloc_resident_bytes": 9_000_011,
        "malloc_in_use_bytes": 8_000_009,
        "malloc_free_bytes": 1_000_033,
        "malloc_cached_bytes": 20_047,
        "malloc_top_bytes": 100_043,
        "malloc_mapped_bytes": 700_001,
        "unexplained_bytes": 7_299_974,
        "malloc_in_use_uncertain_bytes": 0,
        "settled": True,
        "notes": [],
        "elapsed_s": None,
        "size_classes": [{"chunk_bytes": 1040, "chunks": 1009, "bytes": 1_049_360}],
    }


def test_the_json_document_of_two_looks_has_the_changes():
    later = dataclasses.replace(LOOK, anon=LOOK.anon - 3, malloc=dataclasses.replace(MALLOC, sizes={32: 3002}))

    found = document(later, figures(later, LOOK), size_classes(later, LOOK)[:1], elapsed_s=2.5)

    assert (found["anon_bytes_change"], found["elapsed_s"]) == (-3, 2.5)
    assert found["size_classes"] == [
        {"chunk_bytes": 32, "chunks": 3002, "bytes": 96_064, "chunks_change": 1, "bytes_change": 32}
    ]


def test_an_unknown_figure_is_null_in_json_and_text_that_is_not_utf_8_is_replaced():
    look = dataclasses.replace(LOOK, zend=None, title=HOSTILE, lacking={"Zend": HOSTILE})
    out = io.StringIO()
    render_json([document(look, figures(look), [], elapsed_s=None)], [(7, HOSTILE)], out)

    out.getvalue().encode()
    (process,) = json.loads(out.getvalue())["processes"]
    assert (process["zend_resident_bytes"], process["native_bytes"], process["unexplained_bytes"]) == (None, None, None)
    assert process["title"].endswith("\ufffd")
