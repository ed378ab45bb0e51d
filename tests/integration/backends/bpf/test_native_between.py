"""Native memory that PHP allocates between requests, where it reads parameters: no request keeps or frees it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import fastcgi
import pytest
from fpm import ONE_WORKER, Fpm
from tracing import Tracer

from tracer.analysis.ranking import GroupBy, Ranking
from tracer.facts import Release, Request

LEAK = 32 * (1040 + 32)  # bytes that native_leak.php keeps
KIB = 1024
# PHP allocates a block for parameters that do not fit in 4 KB (fcgi_hash_strndup() in main/fastcgi.c, 8.2).
COOKIES = [1 * KIB, 6 * KIB, 60 * KIB]


@pytest.fixture(params=[False, True], ids=["a connection a request", "one connection"])
def send(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Send a request for each of these scripts, one after the other, and wait for the answers.

    php-fpm does not keep a connection on which it has not read the body.
    """

    def send(fpm: Fpm, scripts: list[str], body: bytes = b"", **params: str) -> None:
        keep = request.param and (not body or "CONTENT_LENGTH" in params)
        for together in [scripts] if keep else [[script] for script in scripts]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(str(fpm.socket()))
                for script in together:
                    connection.sendall(fastcgi.message(fpm.params(script, **params), keep=keep, body=body))
                    assert fastcgi.receive(connection).ended

    return send


def figures(found: list[Request], script: str) -> set[tuple[int | None, ...]]:
    """Bytes that the requests for this script allocated, freed, freed of earlier blocks, kept; and those between."""
    return {
        (one.native_alloc_bytes, one.native_free_bytes, one.native_freed_earlier, one.native_kept,
         one.native_between_bytes)
        for one in found
        if os.path.basename(one.script or "") == script
    }  # fmt: skip


@pytest.mark.parametrize("cookie", COOKIES)
def test_parameters_of_any_size_are_no_memory_of_the_request_that_frees_them(
    fpm: Fpm, trace: Callable[..., Tracer], send: Callable[..., None], cookie: int
) -> None:
    for script in ("hello.php", "native_leak.php"):
        fpm.get(script, HTTP_COOKIE="c" * cookie)
    tracer = trace(str(fpm.master))

    send(fpm, ["hello.php", "native_leak.php", "hello.php"] * 10, HTTP_COOKIE="c" * cookie)

    found = tracer.next(30)
    assert figures(found, "hello.php") == {(0, 0, 0, 0, 0)}
    assert figures(found, "native_leak.php") == {(LEAK, 0, 0, LEAK, 0)}


def test_parameters_that_become_mappings_of_their_own_are_no_memory_of_the_request(
    start_fpm: Callable[..., Fpm],
    trace: Callable[..., Tracer],
    send: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Blocks from this size on are mmapped, and the first that is freed does not raise the threshold.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "8192")
    fpm = start_fpm(www=ONE_WORKER)
    fpm.get("hello.php")
    tracer = trace(str(fpm.master))

    send(fpm, ["hello.php"] * 10, HTTP_COOKIE="c" * 60 * KIB)

    found = tracer.next(10)
    assert figures(found, "hello.php") == {(0, 0, 0, 0, 0)}
    assert {one.native_mapped_bytes for one in found} == {0}


@pytest.mark.parametrize("size", [7, 1 << 20])
@pytest.mark.parametrize("announced", [True, False], ids=["with its length", "without"])
def test_a_body_is_no_native_memory_of_the_request(
    fpm: Fpm, trace: Callable[..., Tracer], send: Callable[..., None], size: int, announced: bool
) -> None:
    params = {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "text/plain", "HTTP_COOKIE": "c" * 6 * KIB}
    if announced:
        params["CONTENT_LENGTH"] = str(size)
    send(fpm, ["body.php"], b"b" * size, **params)
    tracer = trace(str(fpm.master))

    send(fpm, ["body.php"] * 5, b"b" * size, **params)

    assert figures(tracer.next(5), "body.php") == {(0, 0, 0, 0, 0)}


def test_what_a_worker_allocates_before_its_first_request_and_keeps_is_not_that_request_s(
    start_fpm: Callable[..., Fpm], trace: Callable[..., Tracer]
) -> None:
    fpm = start_fpm(www=ONE_WORKER)
    tracer = trace(str(fpm.master))

    for _ in range(3):
        fpm.get("hello.php", HTTP_COOKIE="c" * 6 * KIB)

    first, *others = tracer.next(3)
    assert (first.native_free_bytes, first.native_freed_earlier) == (0, 0)
    assert 0 <= (first.native_between_bytes or 0) < 4 * KIB
    assert figures(others, "hello.php") == {(0, 0, 0, 0, 0)}


def test_a_list_that_grows_is_held_by_its_script_whatever_the_parameters(
    fpm: Fpm, trace: Callable[..., Tracer]
) -> None:
    (fpm.folder / "list").write_text("0 0")
    (fpm.folder / "list").chmod(0o666)
    fpm.get("native_list.php")
    tracer = trace(str(fpm.master))

    for _ in range(20):
        fpm.get("native_list.php", HTTP_COOKIE="c" * 6 * KIB)
    tracer.next(20)
    tracer.close()

    ranking = Ranking(GroupBy.SCRIPT, window=100)
    for fact in tracer.facts:
        if isinstance(fact, Request):
            ranking.add(fact)
        elif isinstance(fact, Release):
            ranking.release(fact)
    (group,) = ranking.groups()
    assert group.kept_per_request == pytest.approx(4096, rel=0.1)
