"""REQUEST_URI, method and script: what PHP sees is what is recorded, whatever a client sends."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from backend_kinds import BPF, BREAKPOINTS, NOTES, SYSCALLS, notes
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.backends.records.request_structs import SCRIPT_MAX, URI_MAX
from tracer.facts import Note


def _as_bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _uris(rng: random.Random, count: int) -> list[bytes]:
    shapes: list[Callable[[], bytes]] = [
        lambda: b"/" + rng.randbytes(rng.randrange(1, 60)).replace(b"\0", b"/"),
        lambda: b"/user/%d/edit?token=%d" % (rng.randrange(10**9), rng.randrange(10**9)),
        lambda: b"/" + b"a" * rng.choice([1, 7, 8, 9, 15, 16, 17, 127, 128, 2046, 2047, 2048, 2049, 12_000]),
        lambda: "/söme/ünïcödé/日本語/🙂".encode() + b"x" * rng.randrange(50),
        lambda: b"/\x1b[31mred\x1b[0m\r\n\"'<script>&%00\xff\xfe=cmd|'/c calc'!A1",
        lambda: b"*",
        lambda: b"//" * rng.randrange(1, 30) + b"?" * rng.randrange(3),
    ]
    return [rng.choice(shapes)() for _ in range(count)]


def _colliding_headers(rng: random.Random, count: int) -> dict[str, str]:
    """Names in REQUEST_URI's bucket: FCGI_HASH_FUNC takes the 4th, the last two characters and the length."""
    found = {}
    for number in range(count):
        middle = "".join(rng.choice("ABCDEFGHIJKLMNOPQRST") for _ in range(4))
        found[f"XYZU{middle}URI"] = f"decoy {number}"
    return found


@pytest.mark.parametrize("count", [1500, pytest.param(5000, marks=pytest.mark.slow)])
def test_uris_of_all_shapes_come_back_equal(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], backend: str, count: int
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    keeping = trace(str(fpm.master), keep_query=True)
    rng = random.Random(20261123)
    sent = _uris(rng, count)
    seen_by_php = []
    for at, uri in enumerate(sent):
        decoys = _colliding_headers(rng, rng.choice([0, 0, 1, 5])) if at % 10 == 0 else {}
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
        seen, _, echoed = fpm.get("uri.php", REQUEST_URI=uri, REQUEST_METHOD=method, **decoys).text.partition(" ")
        seen_by_php.append((bytes.fromhex(seen), echoed))
        if at % 500 == 0:
            keeping.poll()
    requests = keeping.next(count)

    assert [uri for uri, _ in seen_by_php] == sent
    for (uri, method), request in zip(seen_by_php, requests, strict=True):
        assert _as_bytes(request.uri) == uri[:URI_MAX]
        assert request.method == method
        assert request.script == f"{fpm.folder}/uri.php"
        assert notes(request) == NOTES[backend] | ({Note.URI_CUT.value} if len(uri) > URI_MAX else set())
    assert keeping.lost == 0


def test_the_query_is_not_kept_unless_asked_for(fpm: Fpm, traced: Tracer) -> None:
    fpm.get("hello.php", REQUEST_URI="/login?password=hunter2", QUERY_STRING="password=hunter2")
    (request,) = traced.next()

    assert request.uri == "/login"
    assert "hunter2" not in repr(request)


def test_a_hash_chain_built_to_hide_the_uri_leads_to_a_flagged_fallback(fpm: Fpm, traced: Tracer, backend: str) -> None:
    decoys = _colliding_headers(random.Random(7), 40)
    fpm.get("hello.php", REQUEST_URI="/hidden", **decoys)
    (request,) = traced.next()

    # PHP puts new names at the head of a chain: REQUEST_URI, sent before them, is out of reach of those that read
    # PHP's memory. With stops at system calls, what the web server sends is read.
    expected = {
        BPF: ("/hello.php", Note.URI_IS_SCRIPT_NAME),
        SYSCALLS: ("/hidden", None),
        BREAKPOINTS: (None, Note.URI_UNKNOWN),
    }
    uri, note = expected[backend]
    assert request.uri == uri
    assert notes(request) == NOTES[backend] | ({note.value} if note else set())


def test_without_request_uri_the_script_name_stands_in_or_a_note_says_that_there_is_none(
    fpm: Fpm, traced: Tracer, backend: str
) -> None:
    fpm.get("hello.php", REQUEST_URI=None)
    (request,) = traced.next()

    # With ptrace, SCRIPT_NAME is not read.
    uri, note = ("/hello.php", Note.URI_IS_SCRIPT_NAME) if backend == BPF else (None, Note.URI_UNKNOWN)
    assert request.uri == uri
    assert notes(request) == NOTES[backend] | {note.value}


@pytest.mark.parametrize("layouts", ["known", "unknown"])
def test_names_that_php_shortens_in_place_are_as_short(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer], monkeypatch: pytest.MonkeyPatch, layouts: str
) -> None:
    if layouts == "unknown":
        monkeypatch.setattr("tracer.targets.layouts.LAYOUTS", ())
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master), keep_query=True)
    path = f"{fpm.folder}/hello.php"
    # A path of exactly as many bytes as are kept, once Apache's prefix is off.
    long = f"{fpm.folder}/{'./' * SCRIPT_MAX}"[: SCRIPT_MAX - len("hello.php") - 1] + "/hello.php"
    sent = {
        f"proxy:fcgi://localhost{path}": path,
        f"PROXY:Balancer://a.b:9000{path}?q=/1": path,
        f"proxy:fcgi://{path}/path/info": path,
        f"{path}/path/info": path,
        f"proxy:fcgi://localhost{long}": long,
    }
    bodies = [fpm.get("", SCRIPT_FILENAME=name, REQUEST_URI=f"/a\0b{len(name)}").body for name in sent]
    requests = tracer.next(len(sent))

    assert bodies == [b"hello"] * 5
    assert [request.script for request in requests] == list(sent.values())
    assert {request.uri for request in requests} == {"/a"}
    assert not any({Note.SCRIPT_CUT.value, Note.URI_CUT.value} & notes(request) for request in requests)


def test_an_empty_request_uri_is_empty_and_not_unknown(fpm: Fpm, traced: Tracer, backend: str) -> None:
    fpm.get("hello.php", REQUEST_URI="")
    (request,) = traced.next()

    assert (request.uri, notes(request)) == ("", NOTES[backend])
